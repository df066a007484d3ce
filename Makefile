# make book    build the book          make lab         open the chapters in JupyterLab
# make test    test everything         make check       lint, format, unit tests: two minutes
# make bench   timings against other ways to compute
# make clean   remove what was built   make notebooks   store fresh outputs in book/
# make pdf     the built book as one PDF, printed by Chromium
# make paper   record the chapters at the paper's scale
# make scale   record MNIST up to all its images, in two hours and 11 GB of memory
# make labels   record which scores find wrong labels, beside cleanlab and pyDVL
# make own     record a network of photos that learns others, and is asked why; 20 minutes
# make peers   record the estimators of six libraries beside the exact one, in their own environments
# make deep   record deep networks trained again, and their kinks
# make sweep   record where each finding holds: other classes, seeds, n, ridges
# make mutants wrong libraries that the tests do not notice: MODULE=bounds, SAMPLE=30
#
# What stands behind a command, as in  make book DATASETS="mnist:4/9" N_TRAIN=1000
#
# DATASETS  the images of every page, for instance "mnist:4/9, /data/photos:cats/dogs"
# N_TRAIN   how many of them to train on, an even number
# N_TEST    how many to test on, an even number
# SIZE      height and width to which images of different sizes are brought
# NTK_DATA  folder of MNIST, of CIFAR-10 and of your own; by default ~/.cache/ntk-influence
# BUILD     folder of the build; by default _build, or one below it for each choice of the above
# CIFAR10   for paper, labels, own, deep and sweep: a folder of images in place of CIFAR-10
# JOBS      how many chapters are executed at a time, each on one thread; by default 2
# VENV      virtual environment, made if there is none; by default .venv
# PYTHON    the Python that makes it, 3.11 or newer; by default python3

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
DATASETS ?=
N_TRAIN ?=
N_TEST ?=
SIZE ?=
CIFAR10 ?= cifar10

# parameters of the chapters; their values reach the shell as they are
quote = '$(subst ','\'',$(value $(1)))'
CHANGED := $(strip $(foreach v,DATASETS N_TRAIN N_TEST SIZE,$(if $(value $v),$v)))
SET = $(foreach v,$(CHANGED),--set $v $(call quote,$v))
$(if $(and $(CHANGED),$(filter notebooks,$(MAKECMDGOALS))),\
    $(error make notebooks takes no $(CHANGED): git keeps the outputs of the defaults))

# every choice of them has a folder of its own: its words, and a checksum since words may coincide
SLUG := $(if $(CHANGED),$(shell words () { printf '%s ' "$$@" | sed 's/--set //g; s/^DATASETS //'; }; \
    { words $(SET) | LC_ALL=C tr -cs '[:alnum:]' _ | cut -c 1-80; \
    words $(SET) | cksum | cut -d ' ' -f 1; } | paste -s -d - -))
BUILD ?= _build$(if $(SLUG),/$(SLUG))
SITE := $(BUILD)/html/index.html
STAGE := $(BUILD)/executed

BIN := $(VENV)/bin
READY := $(VENV)/.ntk-influence
LIB := $(wildcard lib/*.py book/*.py book/*.js)
LAST := book/ledger.ipynb book/summary.ipynb# they count what the chapters checked
CHAPTERS := $(filter-out $(LAST),$(wildcard book/*.ipynb))
PAPER := _build/paper/book
RETRAINED := _build/paper/retrain/complete
STATIC := _config.yml _toc.yml $(shell find book -type f ! -name '*.ipynb' ! -name '*.py' ! -name '*.pyc' ! -path '*/.*')
RECORDS := $(filter book/records/%,$(STATIC))

# compiled imports are kept: a build starts some two hundred processes, and each would compile again
unexport PYTHONDONTWRITEBYTECODE

# on the book's own data every finding has to hold; on others it is a row of the ledger
export NTK_FINDINGS := $(if $(CHANGED),report,raise)
STYLE = $(BIN)/ruff check && $(BIN)/ruff format --check
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# exec, so that nothing stands between make and what has to end with it
RUN := exec $(PYTHON) book/run.py
CHAPTERS_PY := exec $(BIN)/python -m book.chapters

.PHONY: help book site pdf install test check lab bench notebooks stored paper scale labels own sweep peers deep mutants clean
.DELETE_ON_ERROR:
.PRECIOUS: $(PAPER)/%.ipynb

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# one build at a time; what is out of date is decided when it is our turn
book:
	@$(RUN) --lock _build/lock $(MAKE) --no-print-directory site

site: $(SITE)
	@echo "the book:   file://$(abspath $(SITE))"
	@echo "the ledger: $(BUILD)/ledger.csv"

# into the site, whose front page then has a link to it
pdf: book
	@exec $(BIN)/python -m book.pdf $(dir $(SITE))

test: $(if $(filter book,$(MAKECMDGOALS)),book) $(READY)
	$(STYLE)
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadfile
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadfile \
	    --nbval --nbval-sanitize-with tests/nbval-sanitize.cfg book

# without notebooks, records, sites and what calls make
check: $(READY)
	$(STYLE)
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadfile -q \
	    $(addprefix --ignore=tests/test_,pdf.py records.py repository.py site.py)

# JupyterLab refuses to start as root, as one is in a container, unless told so
lab: $(READY)
	@exec $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) book

bench: $(READY)
	@status=0; for name in $(filter-out __init__ common,$(basename $(notdir $(wildcard bench/*.py)))); do \
	    echo "== $$name"; $(BIN)/python -m bench.$$name || status=1; done; exit $$status

# the outputs that git keeps are those of the default parameters; they come from the same build
notebooks:
	@$(RUN) --lock _build/lock $(MAKE) --no-print-directory stored

stored: $(LAST:%=$(STAGE)/%)
	@for chapter in $(CHAPTERS) $(LAST); do \
	    $(BIN)/python -m book.chapters clean $(STAGE)/$$chapter $$chapter || exit 1; \
	done
	@touch $(CHAPTERS:%=$(STAGE)/%) && touch $(BUILD)/ledger.csv && touch $(LAST:%=$(STAGE)/%)

# the same chapters at the paper's scale, kept with date, machine and time
RECORDED := 01-kernel 02-ridge 03-influence 06-ihvp 07-regularisation 08-density 09-trust 10-complexity \
    11-dynamics 12-real-network 17-losses
TWO_CLASSES = mnist:4/9, $(CIFAR10):airplane/automobile

# the retrainings take all cores, so the chapters wait; both go on where they were cut short
paper: $(RETRAINED)
	$(MAKE) -j$(JOBS) $(RECORDED:%=_build/paper/%.recorded)

$(RETRAINED): book/paper.py $(addprefix lib/,$(addsuffix .py,network problem product state newton descent retrain ihvp)) $(READY)
	@exec $(BIN)/python -m book.paper $(@D) book/records --cifar10 $(call quote,CIFAR10)

# a folder that has a part of CIFAR-10 has too few test images: there all come from its train
CIFAR10_1000 = $(if $(filter cifar10,$(CIFAR10)),cifar10,$(CIFAR10)/train)
VEHICLES := airplane+automobile+ship+truck/bird+cat+deer+dog+frog+horse

$(PAPER)/%.ipynb: SCALE = --set n_train 1000 --set datasets '$(TWO_CLASSES)'
$(PAPER)/11-dynamics.ipynb: SCALE = --set n_train 1000 --set datasets 'mnist:4/9, $(CIFAR10_1000):$(VEHICLES)'
$(PAPER)/12-real-network.ipynb: SCALE = --set n_train 120 --set datasets '$(TWO_CLASSES)'
$(PAPER)/17-losses.ipynb: SCALE = --set n_train 600 --set datasets '$(TWO_CLASSES), mnist:all, $(CIFAR10):all'

$(PAPER)/%.ipynb: book/%.ipynb $(LIB) book/chapters.py $(READY)
	@$(CHAPTERS_PY) execute $< $@ $(SCALE)

# stamps, so that building the book never asks for a record to be made again
_build/paper/%.recorded: $(PAPER)/%.ipynb
	@$(CHAPTERS_PY) record $< book/records && touch $@

# each n is a result, so it goes on where it was cut short, and so do the largest inverses
scale: $(READY)
	@exec $(BIN)/python -m book.scale _build/scale book/records --folder _build/scale/tiles --audit

# an hour on one core; goes on where it was cut short
labels: $(VENV)/.labels
	@exec env $(ONE_THREAD) $(BIN)/python -m book.labels _build/labels book/records --cifar10 $(call quote,CIFAR10)

# pyDVL asks for a numpy that the book cannot use, but runs with ours
$(VENV)/.labels: $(READY)
	@$(RUN) --log $(VENV)/labels.log $(BIN)/python -m pip install --no-compile --editable '.[labels]'
	@$(RUN) --log $(VENV)/labels.log $(BIN)/python -m pip install --no-compile --no-deps 'pydvl==0.10.0'
	@touch $@

# twenty minutes on one core; goes on where it was cut short
own: $(READY)
	@exec env $(ONE_THREAD) $(BIN)/python -m book.own _build/own book/records --cifar10 $(call quote,CIFAR10)

# goes on where it was cut short; neural-tangents wants a jax and a numpy of its own; without MNIST
# its network is left out, and its rows stay
PEERS := _build/peers
peers: $(PEERS)/.ready
	@exec env $(ONE_THREAD) $(BIN)/python -m bench.peers $(PEERS)/work book/records \
	    --peers $(PEERS)/venv/bin/python --jax $(PEERS)/jax/bin/python --more

# it sees the packages of the project, and what it adds to them the project does not see
$(PEERS)/.ready: bench/peers/requirements.txt $(READY)
	@mkdir -p $(PEERS) && $(BIN)/python -m venv $(PEERS)/venv && $(BIN)/python -m venv $(PEERS)/jax
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	    > "$$($(PEERS)/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	@$(RUN) --log $(PEERS)/install.log $(PEERS)/venv/bin/python -m pip install --no-compile -r $<
	@$(RUN) --log $(PEERS)/install.log $(PEERS)/venv/bin/python -m pip install --no-compile --no-deps \
	    'pydvl==0.10.0'
	@$(RUN) --log $(PEERS)/install.log $(PEERS)/jax/bin/python -m pip install --no-compile 'jax==0.5.3' \
	    'jaxlib==0.5.3' 'numpy<2' 'scipy<1.16' 'neural-tangents==0.6.5'
	@touch $@

# an hour on one core; goes on where it was cut short
deep: $(READY)
	@exec env $(ONE_THREAD) $(BIN)/python -m book.deep _build/deep book/records --cifar10 $(call quote,CIFAR10)

# every chapter on held-out settings; goes on where it was cut short
sweep: $(READY)
	@exec $(BIN)/python -m book.sweep _build/sweep book/records $(filter-out %/13-where.ipynb %/intro.ipynb,$(CHAPTERS)) \
	    --cifar10 $(call quote,CIFAR10) --jobs $(JOBS)

# small changes of the library, one at a time, each against the tests of its module; hours for all
mutants: $(READY)
	$(ONE_THREAD) $(BIN)/python -m tests.mutants $(MODULE) $(if $(SAMPLE),--sample $(SAMPLE))

clean:
	rm -rf _build

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.12 book"; exit 1; }
	@$(RUN) --lock _build/install.lock $(MAKE) --no-print-directory install

install:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@test $(READY) -nt pyproject.toml || \
	    { echo "installing into $(VENV): a few minutes, once; the log: $(VENV)/install.log"; \
	    $(RUN) --log $(VENV)/install.log $(BIN)/python -m pip install --no-compile --editable '.[book,pdf,test]'; }
	@touch $(READY)

# chapters: executed again when they or the library change, and kept only if every claim holds
$(BUILD)/ledger.csv: $(CHAPTERS) $(RECORDS:%=$(STAGE)/%) $(LIB) book/chapters.py _toc.yml $(READY)
	@$(CHAPTERS_PY) build $(STAGE)/book $(CHAPTERS) --jobs $(JOBS) $(SET)
	@for page in $(STAGE)/book/*.ipynb; do test -e book/$${page##*/} || rm $$page; done
	@$(CHAPTERS_PY) ledger $(STAGE)/book $@

$(LAST:%=$(STAGE)/%): $(STAGE)/%: % $(BUILD)/ledger.csv
	@$(CHAPTERS_PY) execute $< $@

$(STATIC:%=$(STAGE)/%): $(STAGE)/%: %
	@mkdir -p $(@D) && cp $< $@

$(SITE): $(LAST:%=$(STAGE)/%) $(STATIC:%=$(STAGE)/%) $(LIB)
	@rm -rf $(BUILD)/_build
	@echo "building the site"
	@$(RUN) --log $(BUILD)/site.log $(BIN)/jupyter-book build $(STAGE) --path-output $(BUILD) \
	    -W -n --keep-going --all -q
	@rm -rf $(BUILD)/html && mv $(BUILD)/_build/html $(BUILD)/html && rm -rf $(BUILD)/_build
	@touch $@
