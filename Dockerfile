# syntax=docker/dockerfile:1
# `alignkd` for NVIDIA GPUs; how to build and run: docs/install.md.
#
# The image is `base`, without CUDA's libraries: builds of torch for CUDA bring their own. Rocky Linux 9 has Python 3.11,
# with which the tests run.
ARG CUDA_IMAGE=nvidia/cuda:12.8.1-base-rockylinux9

FROM ${CUDA_IMAGE} AS build
RUN dnf install -y --nodocs --setopt=install_weak_deps=False python3.11 python3.11-pip \
    && dnf clean all
RUN python3.11 -m venv /opt/alignkd
WORKDIR /source
# the packages first: a change of the source does not install them again
COPY constraints.txt ./
RUN /opt/alignkd/bin/python -m pip install --no-cache-dir -c constraints.txt torch
COPY LICENSE MANIFEST.in README.md pyproject.toml setup.py ./
COPY src src
COPY disk disk
COPY evaluation evaluation
COPY pipeline pipeline
COPY storage storage
COPY student_train student_train
COPY teacher_dump teacher_dump
COPY vlm vlm
ARG EXTRAS=families,kernels,quantized,remote
RUN /opt/alignkd/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/alignkd/bin/python -m pip install --no-cache-dir -c constraints.txt "$(echo /wheels/*.whl)[${EXTRAS}]"

FROM ${CUDA_IMAGE}
# a C compiler and Python's headers: Triton and torch.compile build small libraries when they first run
RUN dnf install -y --nodocs --setopt=install_weak_deps=False gcc gcc-c++ python3.11 python3.11-devel \
    && dnf clean all \
    && useradd --uid 1000 --create-home alignkd \
    && install --directory --owner alignkd --mode 1777 /cache /work
COPY --from=build /opt/alignkd /opt/alignkd
# HOME is the cache, so that the user may be any (`docker run --user`)
ENV PATH=/opt/alignkd/bin:${PATH} \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    ALIGNKD_CACHE=/cache/alignkd \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor
USER 1000
WORKDIR /work
VOLUME ["/cache"]
ENTRYPOINT ["alignkd"]
CMD ["--help"]
