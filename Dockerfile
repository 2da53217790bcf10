# The default fits PyTorch's build on the package index (CUDA 13.0; Turing and newer). For V100:
#   docker build --build-arg BASE_IMAGE=nvidia/cuda:12.6.3-cudnn-devel-ubuntu24.04 \
#     --build-arg PIP_EXTRA_INDEX_URL=ADDRESS_OF_THE_CUDA_12_6_BUILDS \
#     --build-arg TORCH_CUDA_ARCH_LIST=7.0 .
# Without a GPU: BASE_IMAGE=ubuntu:24.04, WITH_APEX=0. PyTorch's installation page names the addresses of its builds.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-cudnn-devel-ubuntu24.04
FROM ${BASE_IMAGE}

# Build arguments stay in the image's history: an index address must not carry a password.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG EXTRAS=gpu,data

ENV VENV=/opt/venv \
    PROJECT=/workspace \
    PATH=/opt/venv/bin:${PATH} \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /workspace
COPY docker/install.sh docker/install.sh
RUN docker/install.sh system

# Only what names the requirements: a change of the sources keeps this layer and the next.
COPY pyproject.toml setup.py constraints.txt README.md ./
COPY megatron_gptx/__init__.py megatron_gptx/__init__.py
RUN docker/install.sh requirements

ARG WITH_APEX=1
ARG APEX_URL=https://github.com/NVIDIA/apex.git
ARG APEX_REF=becbb77cea4cb54f2929f7c938a0a6f7dd1fdc39
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0"
ARG MAX_JOBS=8
RUN docker/install.sh apex

ARG USER_ID=1000
RUN docker/install.sh user
COPY --chown=${USER_ID} . .

USER ${USER_ID}
VOLUME ["/workspace/data", "/workspace/runs"]
# Says what to do where a bound folder belongs to somebody else.
ENTRYPOINT ["/workspace/docker/entrypoint.sh"]
# NCCL and the loader's workers exchange tensors through /dev/shm, and Docker's 64 MB are too few:
# docker run --gpus all --init --shm-size 8g ...
CMD ["./deepy.py", "train.py", "configs/1B-v100x2.yml", "--dry-run"]
