# make demo, test, tiny, lint, bench, gpu-check. Each makes .venv and installs what it needs, once.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu (or .../cu130) names the wheel index torch comes from.
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE := 1
export GRADIO_ANALYTICS_ENABLED := False

.PHONY: demo test tiny lint bench gpu-check install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[train,demo,eval,serve,dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(RUN) -m demo.app

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile

tiny: $(STAMP)
	$(RUN) -m scripts.tiny

lint: $(STAMP)
	$(RUN) -m ruff check .

bench: $(STAMP)
	$(RUN) -m scripts.bench

gpu-check: $(STAMP)
	$(RUN) -m scripts.gpu_check
