# An image that trains on NVIDIA GPUs; scripts/run_training.sh --docker and scripts/run_inference.sh --docker use it.
#   docker build -t qlora-orchestrator .
# CUDA comes with torch's wheels; the driver comes from the host, by the NVIDIA Container Toolkit.
FROM python:3.12-slim-bookworm

# Triton compiles small C programs while a model runs; the head of a cluster reaches its workers by SSH and rsync.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev openssh-client rsync \
    && rm -rf /var/lib/apt/lists/*

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    TORCH=cuda

# The packages' folders are empty here, so that a change of our code doesn't install gigabytes again.
WORKDIR /app
COPY pyproject.toml README.md ./
COPY scripts/setup scripts/constraints-cuda.txt scripts/
RUN mkdir orchestrator search_spaces trials && scripts/setup

COPY orchestrator orchestrator
COPY search_spaces search_spaces
COPY trials trials
COPY scripts scripts
ENV PATH=/app/.venv/bin:$PATH

CMD ["python", "-m", "trials.train", "--help"]
