# make demo: text in, an arrow out, in some minutes on two cores. make test: the test suite.
# Both make an environment in .venv first. The README gives the same commands without make.
PYTHON ?= python3
RUN = .venv/bin/python
TEXT = demo/docstrings/docstrings.txt
DATA = demo/data/docstrings.h5
TOKENIZER = demo/tokenizers/docstrings

.PHONY: demo test clean-demo
.DELETE_ON_ERROR:

demo: $(DATA)
	WANDB_MODE=disabled $(RUN) measure_arrow.py configs/demo/demo_forward.json --seeds 3 --jobs 2 -p demo -t $(TOKENIZER)

$(DATA): $(TEXT)
	$(RUN) tokenize_to_h5.py --txt_path $(TEXT) --out_h5_folder demo/data --tokenizer_folder demo/tokenizers \
		--tokenizer_name docstrings --vocab_size 1024 --split symmetric

$(TEXT): | .venv/installed
	$(RUN) collect_docstrings.py $(TEXT)

test: .venv/installed-dev
	$(RUN) -m pytest

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@

clean-demo:
	rm -rf demo
