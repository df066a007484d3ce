# make book    build the book          make lab         open the chapters in JupyterLab
# make test    test everything         make bench       timings against other ways to compute
# make clean   remove what was built   make notebooks   store fresh outputs in book/
# make mutants wrong libraries that the tests do not notice: MODULE=bounds, SAMPLE=30
#
# make book DATASETS="mnist:4/9, cifar10:airplane/automobile"   the same pages on other images
# make paper                                                   record both at the paper's scale
# make paper CIFAR10=cifar10-subset                            with a folder of images as CIFAR-10
# make VENV=$CONDA_PREFIX book                                 in an environment of your own

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
DATASETS ?=
N_TRAIN ?=
N_TEST ?=
SIZE ?=
CIFAR10 ?= cifar10

# other images go to a folder of their own, so that the builds do not mix
SLUG := $(shell printf %s '$(DATASETS)' | tr -cs '[:alnum:].+-' '_')
BUILD ?= _build$(if $(SLUG),/$(SLUG))
SITE := $(BUILD)/html/index.html
STAGE := $(BUILD)/executed

BIN := $(VENV)/bin
READY := $(VENV)/.ntk-influence
LIB := $(wildcard lib/*.py)
CHAPTERS := $(filter-out book/ledger.ipynb,$(wildcard book/*.ipynb))
PAPER := _build/paper/book
RETRAINED := _build/paper/retrain/complete
STAGED := $(CHAPTERS:%=$(STAGE)/%)
STATIC := _config.yml _toc.yml $(shell find book -type f ! -name '*.ipynb' ! -name '*.py' ! -path '*/.*')
RECORDS := $(filter book/records/%,$(STATIC))

# a job takes one thread, and the jobs run side by side
MAKEFLAGS += -j$(JOBS)
# on the book's own data every finding has to hold; on others it is a row of the ledger
export NTK_FINDINGS := $(if $(SLUG)$(N_TRAIN)$(N_TEST)$(SIZE),report,raise)
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
BUILD_PY := $(ONE_THREAD) $(BIN)/python book/build.py

.PHONY: help book test lab bench notebooks paper mutants clean
.DELETE_ON_ERROR:
.PRECIOUS: $(PAPER)/%.ipynb

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

book: $(SITE)
	@echo "the book:   file://$(abspath $(SITE))"
	@echo "the ledger: $(BUILD)/ledger.csv"

test: $(READY) $(if $(filter book,$(MAKECMDGOALS)),$(SITE))
	$(BIN)/ruff check
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadfile
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadfile \
	    --nbval --nbval-sanitize-with tests/nbval-sanitize.cfg book

lab: $(READY)
	$(BIN)/jupyter lab book

bench: $(READY)
	@status=0; for file in $(filter-out bench/common.py,$(wildcard bench/*.py)); do \
	    echo "== $$file"; $(BIN)/python $$file || status=1; done; exit $$status

# the outputs that git keeps are those of the default parameters
notebooks: $(STAGE)/book/ledger.ipynb
	$(if $(SLUG),$(error make notebooks takes no DATASETS: git keeps the default outputs))
	@for chapter in $(CHAPTERS) book/ledger.ipynb; do \
	    $(BUILD_PY) clean $(STAGE)/$$chapter $$chapter || exit 1; \
	done
	@touch $(STAGED) && touch $(BUILD)/ledger.csv && touch $(STAGE)/book/ledger.ipynb

# the same chapters at the paper's scale, kept with date, machine and time
RECORDED := 01-kernel 02-ridge 03-influence 06-ihvp 07-regularisation 08-density 09-trust 10-complexity \
    11-dynamics 12-real-network
TWO_CLASSES = mnist:4/9, $(CIFAR10):airplane/automobile

# the retrainings take all cores, so the chapters wait; both go on where they were cut short
paper: $(RETRAINED)
	$(MAKE) $(RECORDED:%=_build/paper/%.recorded)

$(RETRAINED): book/paper.py lib/train.py lib/product.py lib/retrain.py lib/ihvp.py $(READY)
	@$(BIN)/python book/paper.py $(@D) book/records --cifar10 $(CIFAR10)

# a folder that has a part of CIFAR-10 has too few test images: there all come from its train
CIFAR10_1000 = $(if $(filter cifar10,$(CIFAR10)),cifar10,$(CIFAR10)/train)
VEHICLES := airplane+automobile+ship+truck/bird+cat+deer+dog+frog+horse

$(PAPER)/%.ipynb: SCALE = --set n_train 1000 --set datasets '$(TWO_CLASSES)'
$(PAPER)/11-dynamics.ipynb: SCALE = --set n_train 1000 --set datasets 'mnist:4/9, $(CIFAR10_1000):$(VEHICLES)'
$(PAPER)/12-real-network.ipynb: SCALE = --set n_train 120 --set datasets '$(TWO_CLASSES)'

$(PAPER)/%.ipynb: book/%.ipynb $(LIB) book/build.py $(READY)
	@$(BUILD_PY) execute $< $@ $(SCALE)

# stamps, so that building the book never asks for a record to be made again
_build/paper/%.recorded: $(PAPER)/%.ipynb
	@$(BUILD_PY) record $< book/records && touch $@

# small changes of the library, one at a time, each against the tests of its module; hours for all
mutants: $(READY)
	$(ONE_THREAD) $(BIN)/python tests/mutants.py $(MODULE) $(if $(SAMPLE),--sample $(SAMPLE))

clean:
	rm -rf _build

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.12 book"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV): a few minutes, once"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --progress-bar on --editable '.[book,test]'
	@touch $@

# chapters: executed again when they or the library change, and kept only if every claim holds
$(STAGED): $(STAGE)/%.ipynb: %.ipynb $(RECORDS:%=$(STAGE)/%) $(LIB) book/build.py $(READY)
	@$(BUILD_PY) execute $< $@ \
	    $(if $(SLUG),--set datasets '$(DATASETS)') \
	    $(if $(N_TRAIN),--set n_train $(N_TRAIN)) $(if $(N_TEST),--set n_test $(N_TEST)) \
	    $(if $(SIZE),--set size $(SIZE))

$(BUILD)/ledger.csv: $(STAGED) _toc.yml
	@for page in $(STAGE)/book/*.ipynb; do test -e book/$${page##*/} || rm $$page; done
	@$(BUILD_PY) ledger $(STAGE)/book $@

$(STAGE)/book/ledger.ipynb: book/ledger.ipynb $(BUILD)/ledger.csv
	@$(BUILD_PY) execute $< $@

$(STATIC:%=$(STAGE)/%): $(STAGE)/%: %
	@mkdir -p $(@D) && cp $< $@

$(SITE): $(STAGE)/book/ledger.ipynb $(STATIC:%=$(STAGE)/%) $(LIB)
	@rm -rf $(BUILD)/_build
	@echo building the site
	@$(BIN)/jupyter-book build $(STAGE) --path-output $(BUILD) \
	    -W -n --keep-going --all -q > $(BUILD)/site.log
	@rm -rf $(BUILD)/html && mv $(BUILD)/_build/html $(BUILD)/html && rm -rf $(BUILD)/_build
	@touch $@
