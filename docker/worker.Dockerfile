# The worker: Celery's supervisor and the engine. EXTRA=cpu or EXTRA=gpu decides the build of vLLM and torch.
FROM python:3.11-slim-bookworm

# libnuma: vLLM's CPU kernels. A compiler; Python's headers are in the base image: triton builds its launchers when first
# used. There is no nvcc: the engine tells vLLM to use no kernel that FlashInfer would compile. wget: KubeRay's probes of
# Ray nodes up to release 1.5.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 gcc g++ libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# What is downloaded and compiled outlives the container: /data/huggingface and /data/caches are volumes.
ENV HF_HOME=/data/huggingface \
    VLLM_CACHE_ROOT=/data/caches/vllm \
    TRITON_CACHE_DIR=/data/caches/triton \
    TORCHINDUCTOR_CACHE_DIR=/data/caches/inductor \
    CUDA_CACHE_PATH=/data/caches/cuda \
    MPLCONFIGDIR=/data/caches/matplotlib
ARG PIP_INDEX_URL
# EXTRA=cpu needs the index of PyTorch's CPU wheels here, unless PIP_INDEX_URL carries them.
ARG PIP_EXTRA_INDEX_URL
ARG EXTRA=cpu

WORKDIR /app

# Dependencies first: a change of our code does not install them anew.
# What is uninstalled on the CPU: see .ci/install.
COPY pyproject.toml constraints.txt constraints-gpu.txt README.md ./
RUN case "$EXTRA" in \
        cpu) constraints=constraints.txt ;; \
        gpu) constraints=constraints-gpu.txt ;; \
        *) echo "EXTRA must be cpu or gpu, not '$EXTRA'" >&2; exit 1 ;; \
    esac \
    && pip install --constraint "$constraints" --editable ".[$EXTRA,gym,mlflow,otel,ray,tensorboard,wandb]" \
    && if [ "$EXTRA" = cpu ]; then pip uninstall --yes torchvision torchaudio torchcodec triton opencv-python-headless; fi \
    && python -c "import vllm"

# The distribution's command `trd` is installed here, too.
COPY client client
COPY contract contract
COPY worker worker
COPY trd_data trd_data
COPY trd_estimate trd_estimate
COPY trd_engine trd_engine
COPY testbed/models testbed/models

# Named volumes take the owner of the folder that they are mounted on.
RUN useradd --uid 10001 --create-home trd \
    && install -d -o trd -g trd /data /data/storage /data/scratch /data/trackers /data/huggingface /data/caches
USER trd
CMD ["celery", "-A", "worker.celery_app", "worker"]
