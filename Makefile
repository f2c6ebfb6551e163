# make demo: text in, an arrow out, in some minutes on two cores. make test: the test suite. make check: style and types.
# Each makes an environment in .venv first, with LOCKED=1 of the very files whose hashes are in requirements.lock.
# The README gives the same commands without make.
PYTHON ?= python3
RUN = .venv/bin/python
TEXT = demo/docstrings/docstrings.txt

.PHONY: demo test check lock clean-demo
.DELETE_ON_ERROR:

demo: $(TEXT)
	WANDB_MODE=disabled $(RUN) measure_arrow.py $(TEXT) --seeds 3 --minutes 6 -p demo --state_save_loc demo/runs

$(TEXT): | .venv/installed
	$(RUN) collect_docstrings.py $(TEXT)

test: .venv/installed-dev
	$(RUN) -m pytest

check: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyrefly check --python-interpreter-path $(RUN) --output-format min-text

# Asks PyPI what each pinned package needs, for all systems; uv is a program of its own (pip install uv).
lock:
	uv pip compile requirements-dev.txt --universal --generate-hashes --python-version 3.11 --quiet \
		--default-index https://pypi.org/simple --custom-compile-command "make lock" -o requirements.lock

ifdef LOCKED
.venv/installed .venv/installed-dev: requirements.lock
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --require-hashes -r requirements.lock
	touch .venv/installed .venv/installed-dev
else
.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@
endif

include results.mk

clean-demo:
	rm -rf demo
