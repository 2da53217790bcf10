#!/usr/bin/env bash
# Runs the container's command, once the folder of the runs can be written.
set -euo pipefail

PROJECT=${PROJECT:-/workspace}

writable() { [[ -d $1 && -w $1 && -x $1 ]]; }

if ! writable "$PROJECT/runs"; then
  cat >&2 <<EOF
$PROJECT/runs cannot be written by user $(id -u): it belongs to user $(stat -c %u "$PROJECT/runs" 2>/dev/null || echo nobody).
Docker makes a bound folder that is missing, as root. On the host, give data and runs to this user:
  sudo chown -R $(id -u) data runs
or build and run the image as their owner: USER_ID=\$(id -u) docker compose ... up --build
EOF
  exit 2
fi
# Training only reads it, and it may be bound read-only.
writable "$PROJECT/data" ||
  echo "$PROJECT/data cannot be written by user $(id -u): datasets there can be read, not made" >&2

exec "$@"
