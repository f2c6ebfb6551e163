# make results: every report of results/ again, from the texts on: hours to days, interrupted it goes on.
# make result-NAME: one of them. Needs apt-get (Debian and its kin) for the packages with the texts.

LANGUAGES = fr de es it
HELP = $(foreach language,en $(LANGUAGES),data/help_$(language)/help_$(language))
GENRES = $(foreach text,guides_es guides_en bible_es bible_en,data/$(text)/$(text))
WITH_DOCUMENTS = $(HELP) $(GENRES) data/english/english data/code/code
PRIMES = data/primes_first/primes_first data/primes_last/primes_last
ONES = 0 10 20 30 50
CIRCUITS = $(foreach ones,$(ONES),data/circuit25_$(ones)/circuit25_$(ones))
CIRCUIT20 = data/circuit20_6/circuit20_6
USUAL = bible_en bible_es help_en help_es
COLLECT = $(RUN) collect_debian.py --downloads data/debs
TOKENIZE = $(RUN) tokenize_to_h5.py --txt_path $< --out_h5_folder $(@D) --tokenizer_folder data/tokenizers \
	--tokenizer_name $(notdir $(@D))
BPE = --vocab_size 1024 --split symmetric

PACKAGES_english = anarchism python3.11-doc perl-doc linux-doc-6.1 debian-reference-en
PACKAGES_help_en = libreoffice-help-en-us gimp-help-en lilypond-doc-html debian-reference-en aptitude-doc-en \
	developers-reference maint-guide debian-faq
PACKAGES_help_fr = libreoffice-help-fr gimp-help-fr lilypond-doc-html-fr debian-reference-fr developers-reference-fr \
	maint-guide-fr debian-faq-fr
PACKAGES_help_de = libreoffice-help-de gimp-help-de lilypond-doc-html-de debian-reference-de developers-reference-de \
	maint-guide-de debian-faq-de
PACKAGES_help_es = libreoffice-help-es gimp-help-es lilypond-doc-html-es debian-reference-es aptitude-doc-es \
	maint-guide-es
PACKAGES_help_it = libreoffice-help-it gimp-help-it lilypond-doc-html-it debian-reference-it aptitude-doc-it \
	developers-reference-it maint-guide-it debian-faq-it
PACKAGES_bible_en = sword-text-kjv
PACKAGES_bible_es = sword-text-sparv
PACKAGES_guides_en = debian-handbook=*/en-US/* installation-guide-amd64=*/en/* gnome-user-docs=*/C/* \
	mate-user-guide=*/C/* evolution-common=*/C/* kicad-doc-en debian-edu-doc-en freedombox-doc-en manpages manpages-dev
PACKAGES_guides_es = debian-handbook=*/es-ES/* installation-guide-amd64=*/es/* gnome-user-docs=*/es/* \
	mate-user-guide=*/es/* evolution-common=*/es/* kicad-doc-es debian-edu-doc-es freedombox-doc-es manpages-es \
	manpages-es-dev

RESULTS = docstrings english help bpe genres longer code umaydis tunes positions gru orders_help orders_code primes circuits circuit20
.PHONY: results $(RESULTS:%=result-%)

results: $(RESULTS:%=result-%)

$(RESULTS:%=result-%): result-%:
	$(RUN) -m results.make_results $*

result-docstrings: data/docstrings/docstrings.h5
result-help: $(HELP:%=%.h5)
result-english: data/english/english.h5
result-code: data/code/code.h5
result-umaydis: data/umaydis/umaydis.h5
result-tunes: data/tunes/tunes.h5
result-bpe: $(foreach text,$(USUAL),data/$(text)_bpe/$(text).h5)
result-longer: data/bible_en/bible_en.h5 data/bible_es/bible_es.h5
result-genres: $(GENRES:%=%.h5)
result-positions: data/help_en/help_en.h5 data/code/code.h5
result-gru: data/docstrings/docstrings.h5
result-orders_help: data/help_en/help_en.h5
result-orders_code: data/code/code.h5
result-primes: $(PRIMES:%=%.h5)
result-circuits: $(CIRCUITS:%=%.h5)
result-circuit20: $(CIRCUIT20:%=%.h5)

# Texts
data/docstrings/docstrings.txt: | .venv/installed-dev
	$(RUN) collect_docstrings.py $@

ORIGINAL = english help_en guides_en bible_en bible_es
$(foreach text,$(ORIGINAL),data/$(text)/$(text).jsonl): | .venv/installed-dev
	$(COLLECT) $(PACKAGES_$(basename $(@F)):%='%') $@

TRANSLATED = $(foreach text,$(LANGUAGES:%=help_%) guides_es,data/$(text)/$(text).jsonl)
$(foreach language,$(LANGUAGES),data/help_$(language)/help_$(language).jsonl): data/help_en/help_en.jsonl
data/guides_es/guides_es.jsonl: data/guides_en/guides_en.jsonl
$(TRANSLATED):
	$(COLLECT) $(PACKAGES_$(basename $(@F)):%='%') $@ --without $<

data/code/code.jsonl: | .venv/installed-dev
	$(RUN) collect_code.py $@

data/umaydis/umaydis.fa.gz: | .venv/installed-dev
	mkdir -p data/debs $(@D)
	cd data/debs && apt-get download maffilter-examples
	dpkg-deb --fsys-tarfile data/debs/maffilter-examples_*.deb \
		| tar -xO ./usr/share/doc/maffilter/examples/Umaydis/Umaydis.fasta.gz > $@

data/tunes/tunes.jsonl: | .venv/installed-dev
	$(RUN) -m pip download --quiet --no-deps -d data/wheels music21==10.5.1
	$(RUN) collect_tunes.py data/wheels/music21-10.5.1-*.whl $@

$(PRIMES:%=%.txt) $(CIRCUITS:%=%.txt) $(CIRCUIT20:%=%.txt): | .venv/installed-dev
	$(RUN) generate_text.py $(MADE_$(basename $(@F))) $@

IN_ORDER = primes --lines 400000 --digits 5 --from_digits 1 --ordered
MADE_primes_first = $(IN_ORDER)
MADE_primes_last = $(IN_ORDER) --least_first
$(foreach ones,$(ONES),$(eval MADE_circuit25_$(ones) = noisy_circuit --lines 400000 --bits 25 --ones $(ones)))
MADE_circuit20_6 = noisy_circuit --lines 250000 --bits 20 --ones 6

# Tokens
data/docstrings/docstrings.h5: data/docstrings/docstrings.txt
	$(TOKENIZE) $(BPE)

$(WITH_DOCUMENTS:%=%.h5): %.h5: %.jsonl
	$(TOKENIZE) --text_field text $(BPE)

# By a usual tokenizer; the link keeps a text's tokens apart from those of its other tokenizer.
define BY_USUAL
data/$(1)_bpe/$(1).jsonl: data/$(1)/$(1).jsonl
	mkdir -p $$(@D) && ln -sf ../$(1)/$(1).jsonl $$@
data/$(1)_bpe/$(1).h5: data/$(1)_bpe/$(1).jsonl
	$$(TOKENIZE) --text_field text --vocab_size 1024
endef
$(foreach text,$(USUAL),$(eval $(call BY_USUAL,$(text))))

data/tunes/tunes.h5: data/tunes/tunes.jsonl
	$(TOKENIZE) --text_field text --symbols characters

data/umaydis/umaydis.h5: data/umaydis/umaydis.fa.gz
	$(TOKENIZE) --symbols characters --fasta_n split

$(PRIMES:%=%.h5) $(CIRCUITS:%=%.h5) $(CIRCUIT20:%=%.h5): %.h5: %.txt
	$(TOKENIZE) --symbols characters
