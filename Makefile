# make demo | make test | make check: nothing else is needed on a machine with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test test-zarr test-kernels check wheel-check docs format install

# The stamp is newer than what decides the installation: a second `make` starts at once.
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/alignkd demo $(ARGS)

# one thread each: the workers fill the cores, and more threads than cores cost a third of the time; files in their
# order, since those with few tests, which would come last, are the longest; the slowest tests are listed at the end
test: install
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 60 --durations-min 4 $(ARGS)

# The stores with the newest zarr, which needs Python 3.12; constraints.txt has the newest for Python 3.11. Without torch.
ZARR_PYTHON ?= python3.12
test-zarr:
	test -x .venv-zarr/bin/python || $(ZARR_PYTHON) -m venv .venv-zarr
	.venv-zarr/bin/python -m pip install --quiet --upgrade 'zarr<4' botocore click flask flask-cors google-crc32c hypothesis \
		'moto[s3]' numpy pillow pydantic pytest pyyaml safetensors tqdm 'urllib3<3' 'webdataset<2'
	PYTHONPATH=$(CURDIR)/src OMP_NUM_THREADS=1 .venv-zarr/bin/python -m pytest tests/storage \
		--ignore tests/storage/codecs/test_codec_bfloat16.py $(ARGS)

# Liger's kernels on the CPU, in Triton's interpreter. Triton takes 1 GB and is for GPUs, so both are in a folder of their own.
test-kernels: install
	test -d .kernels/liger_kernel || $(BIN)/python -m pip install --quiet --no-deps --target .kernels -c constraints.txt liger-kernel triton==3.9.0
	PYTHONPATH=$(CURDIR)/.kernels OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/student_train/kernels/test_liger.py $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/api/typed_script.py
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run .ci/wheel_check

# builds wheel and source distribution, runs the Dockerfile's pip commands, installs the wheel beside foreign packages and
# without extras, runs the demo from it
wheel-check: install
	.ci/wheel_check

# the documentation in site/, to be opened from there; the variable silences the advertisement of another program
docs: install
	NO_MKDOCS_2_WARNING=1 PYTHONDONTWRITEBYTECODE=1 $(BIN)/mkdocs build --strict
	$(BIN)/python .ci/site_check.py site

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
