#!/usr/bin/env bash
# The steps of the image, one per layer: docker/install.sh STEP...
# They read VENV, PROJECT and the Dockerfile's build arguments from the environment, and run outside Docker too.
set -euo pipefail

VENV=${VENV:-/opt/venv}
PROJECT=${PROJECT:-/workspace}

system() { # the compiler, Python, and what DeepSpeed starts other nodes with
  export DEBIAN_FRONTEND=noninteractive
  apt-get update
  apt-get install --yes --no-install-recommends \
    build-essential ca-certificates git openssh-client pdsh python3 python3-dev python3-venv
  rm -rf /var/lib/apt/lists/*
}

requirements() { # the pinned packages, and the project as an editable install
  [[ -x $VENV/bin/python ]] || python3 -m venv "$VENV"
  # setup.py names them; the image gets their files in a later layer.
  mkdir -p "$PROJECT/configs" "$PROJECT/csrc"
  "$VENV/bin/python" -m pip install -c "$PROJECT/constraints.txt" -e "$PROJECT[${EXTRAS:-gpu,data}]"
}

apex() { # FusedAdam and the fused layer norm, from a pinned commit
  if [[ ${WITH_APEX:-1} == 0 ]]; then
    echo "apex: left out (WITH_APEX=0); training uses PyTorch's own fused operations"
    return
  fi
  : "${APEX_URL:?names the repository of apex}" "${APEX_REF:?names the commit of apex}"
  local source
  source=$(mktemp -d)
  git init --quiet "$source"
  git -C "$source" fetch --quiet --depth 1 "$APEX_URL" "$APEX_REF"
  git -C "$source" checkout --quiet FETCH_HEAD
  # Older commits read the two options, newer ones the two variables.
  APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "$VENV/bin/python" -m pip install --no-build-isolation --no-deps \
    --config-settings "--build-option=--cpp_ext" --config-settings "--build-option=--cuda_ext" "$source"
  rm -rf "$source"
  # Without its extensions apex installs silently and fails at the first step of a run.
  "$VENV/bin/python" -c 'import torch, amp_C, fused_layer_norm_cuda'
}

user() { # the account that runs, with folders it can write
  local id=${USER_ID:-1000} taken
  if taken=$(id -nu "$id" 2>/dev/null); then
    userdel --remove "$taken" 2>/dev/null || userdel "$taken"
  fi
  useradd --create-home --shell /bin/bash --uid "$id" gptx
  mkdir -p "$PROJECT/data" "$PROJECT/runs"
  chown -R "$id" "$PROJECT"
}

(($# > 0)) || { echo "usage: docker/install.sh system|requirements|apex|user ..." >&2; exit 2; }
for step in "$@"; do
  case $step in
    system | requirements | apex | user) "$step" ;;
    *) echo "docker/install.sh: unknown step '$step'; the steps are system, requirements, apex, user" >&2; exit 2 ;;
  esac
done
