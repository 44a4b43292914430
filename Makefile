# The front door. `make help` lists every target; every target is a thin call of `python -m <room>.<module>`.

PROFILE  ?= demo
METHOD   ?= simsiam_gsg
SEED     ?= 0
GPUS     ?= 0
LAUNCHER ?= none
DATA     ?= data
NODES    ?= 1
ARGS     ?=

VENV   ?= .venv
PYTHON ?= $(VENV)/bin/python
UV     := $(or $(shell command -v uv),.uv/bin/uv)

# A PYTHON of your own (a conda environment, say) is taken as it is; ours is set up first.
SETUP := $(if $(filter file,$(origin PYTHON)),$(VENV)/.complete)

# Figures show all methods unless METHOD is given.
METHOD_GIVEN := $(filter command environment,$(origin METHOD))

# What a user sets may hold any character: neither make nor the shell may take a part of it for a command. Make reads
# it unexpanded (`value`); recipes read it from the environment, in double quotes.
USERS := PROFILE METHOD SEED GPUS LAUNCHER DATA NODES ARGS VENV BASE_PYTHON PYTHON HEAD SRUN_ARGS DATASET DATA_ROOT \
	TORCH CLASSES IMAGES CHECKPOINT NAME KEY FORMAT LOGGER RESUME OVERWRITE FROZEN ONLY DEVICE FAULTS SCALE BUDGET
# Systems set variables of these names for purposes of their own: ours are those of the command line.
$(foreach name,NAME CHECKPOINT KEY,$(if $(filter environment,$(origin $(name))),$(eval override $(name) :=)))
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(USERS),$(if $(filter command environment,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
export $(USERS)

# A list of words may have quoted ones. xargs splits it as a shell would, but expands and runs nothing.
define NEWLINE


endef
quoted = '$(subst $(NEWLINE), ,$(subst ','\'',$(value $1)))'
split  = $(shell words=$$(printf '%s\n' $(call quoted,$1) | xargs sh -c 'for word; do printf "=%s\n" "$$word"; done' sh \
	2>/dev/null) && printf '%s' "$$words" | sed "s/'/'\\\\''/g; s/=\(.*\)/'\1'/")
listed = $(if $(strip $(value $1)),$(or $(call split,$1),$(error $1: a quote is not closed)))
MORE   = $(call listed,ARGS)

# A variable that no target knows is refused, with the nearest known name, if python3 is there to find it.
nearest = $(shell python3 -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1))' \
	'$(subst ','\'',$1)' $(USERS) 2>/dev/null)
unknown = $(error no target knows the variable $1; $(foreach near,$(call nearest,$1),did you mean $(near)? )`make help` lists them)
$(foreach name,$(filter-out $(USERS),$(GIVEN)),$(call unknown,$(name)))

# Make itself compares these with 0 and 1.
digits = $(subst 0,,$(subst 1,,$(subst 2,,$(subst 3,,$(subst 4,,$(subst 5,,$(subst 6,,$(subst 7,,$(subst 8,,$(subst 9,,$1))))))))))
number = $(if $(call digits,$($1)),$(error $1 is '$($1)'; choose a whole number))
switch = $(if $(filter-out 0 1,$($1)),$(error $1 is '$($1)'; choose 1, or 0 for no))
$(foreach name,GPUS NODES,$(call number,$(name)))$(if $(filter 0,$(NODES)),$(error NODES is '0'; choose 1 or more))
$(foreach name,RESUME OVERWRITE FROZEN,$(call switch,$(name)))
# Make takes VENV for the name of a target, in which these mean something else.
ifneq ($(strip $(filter-out 1,$(words $(VENV))) $(foreach mark,~ : ; % * ? [ \ $$,$(findstring $(mark),$(VENV)))),)
  $(error VENV is '$(VENV)'; choose a path without blanks and without any of ~ : ; % * ? [ \ $$)
endif
ifneq ($(filter-out none torchrun slurm,$(LAUNCHER)),)
  $(error LAUNCHER is '$(LAUNCHER)'; choose none, torchrun or slurm)
endif
ifneq ($(filter-out cpu cuda,$(TORCH)),)
  $(error TORCH is '$(TORCH)'; choose cpu or cuda)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

COMMON  = --profile "$$PROFILE" --seed "$$SEED" --data "$$DATA"
METHODS = --method "$$METHOD"
RESUMED = $(if $(filter-out 0,$(RESUME)),--resume) $(REPLACE) $(if $(LOGGER),--logger "$$LOGGER")
REPLACE = $(if $(filter-out 0,$(OVERWRITE)),--overwrite)
FREEZE  = $(if $(filter-out 0,$(FROZEN)),--frozen)
THEIRS  = $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") $(if $(NAME),--name "$$NAME") $(if $(KEY),--key "$$KEY")
SUBJECT = $(if $(CHECKPOINT)$(NAME)$(KEY),$(THEIRS),$(METHODS))
SHOWN   = $(if $(METHOD_GIVEN)$(CHECKPOINT)$(NAME)$(KEY),$(SUBJECT))
OWN     = $(if $(DATA_ROOT),--data-root "$$DATA_ROOT")
NAMED   = $(if $(CLASSES),--classes "$$CLASSES")
PICTURES = $(if $(NAME),--name "$$NAME",$(METHODS)) $(if $(DATASET),--dataset "$$DATASET") $(if $(IMAGES),--images "$$IMAGES")
LOOKED  = $(if $(DATASET),--dataset "$$DATASET") $(OWN)

# Trainers may run in several processes: torchrun's on each of NODES machines, or srun's tasks. GPUS is their number
# on one machine; without a GPU they are CPU processes.
EACH = $(or $(filter-out 0,$(GPUS)),1)
ifeq ($(LAUNCHER),slurm)
  TRAIN  = srun --kill-on-bad-exit=1 $(if $(filter-out 0,$(GPUS)),--nodes=$(NODES) --ntasks-per-node=$(GPUS)) $(call listed,SRUN_ARGS) "$$PYTHON" -m
  RANKS  = --launcher slurm
else ifneq ($(filter-out 0 1,$(GPUS))$(filter-out 1,$(NODES))$(filter torchrun,$(LAUNCHER)),)
  RENDEZVOUS = $(if $(filter-out 1,$(NODES)),--nnodes $(NODES) --rdzv_backend c10d --rdzv_id gsg --rdzv_endpoint $(if $(HEAD),"$$HEAD",$(error NODES=$(NODES) needs HEAD=host:port of the first machine)),--standalone)
  TRAIN  = "$$PYTHON" -m tools.launch $(RENDEZVOUS) --nproc_per_node $(EACH) -m
  RANKS  = --launcher pytorch
else
  TRAIN  = "$$PYTHON" -m
  RANKS  =
endif

help: ## list every target
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z0-9-]*:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PROFILE=demo|cifar10|imagenet  METHOD=simsiam|simsiam_gsg|byol|byol_gsg|all|untrained  SEED=0  DATA=data"
	@echo "  METHOD=<method>-<ablation> varies one: farthest, random, shared_views, no_predictor, batch64 ... batch1024"
	@echo "  TORCH=cuda|cpu  BASE_PYTHON=path  VENV=.venv  PYTHON=a Python of yours that has the packages"
	@echo "  GPUS=0|1|8...  NODES=1  HEAD=host:port  LAUNCHER=none|torchrun|slurm  SRUN_ARGS='...'"
	@echo "  DATASET=dtd  DATA_ROOT=folder CLASSES=a,b  RESUME=1  OVERWRITE=1  FROZEN=1  LOGGER=wandb|mlflow"
	@echo "  CHECKPOINT=path NAME=label KEY=network  ARGS='...'"

setup: $(VENV)/.complete ## make .venv with the locked requirements and this project; TORCH=cpu|cuda BASE_PYTHON=path

# The newest Python that the lock is for and that can make environments; or BASE_PYTHON, if it is such a one.
PICK = for python in $(if $(BASE_PYTHON),"$$BASE_PYTHON",python3.14 python3.13 python3.12 python3.11 python3 python); do \
	"$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && break; \
	python=; done; [ "$$python" ] || { echo "error: no Python 3.11 to 3.14 with its module venv: $${BASE_PYTHON:-none on PATH}; \
	install one (on Debian python3-venv, too), or set BASE_PYTHON=path" >&2; exit 1; }

# The stamp says for what torch was installed; another TORCH starts afresh. Wheels of torch for CPUs alone are not on
# PyPI: uv knows where they are. What was downloaded before is not downloaded again.
HAS  := $(if $(wildcard $(VENV)/.complete),$(shell cat '$(subst ','\'',$(value VENV))/.complete'))
KIND := $(or $(TORCH),$(HAS),cuda)
OTHER = $(filter-out $(KIND),$(HAS))
PIP   = "$$VENV"/bin/python -m pip install --disable-pip-version-check --no-deps
$(VENV)/.complete: requirements.txt pyproject.toml $(if $(OTHER),FORCE)
	@$(if $(OTHER),false,"$$VENV"/bin/python -m pip --version >/dev/null 2>&1) || { $(PICK); \
		"$$python" -m venv $$([ ! -f "$$VENV"/pyvenv.cfg ] || echo --clear) "$$VENV"; }
	@echo "setting up $$VENV: $$("$$VENV"/bin/python -V), torch for $(KIND); after an interruption the same command goes on"
ifeq ($(KIND),cpu)
	@awk '/^[^ ]/ {skip = /^(torch|triton|cuda-|nvidia-)/} !skip' requirements.txt > "$$VENV"/requirements.txt
	$(PIP) --require-hashes -r "$$VENV"/requirements.txt
	@[ -x "$(UV)" ] || $(MAKE) --no-print-directory "$(UV)" TORCH=
	"$(UV)" pip install --python "$$VENV" --no-deps --torch-backend cpu $$(sed -n 's/^\(torch[a-z]*==[^ ]*\).*/\1/p' requirements.txt)
else
	$(PIP) --require-hashes -r requirements.txt
endif
	$(PIP) --quiet --no-build-isolation --editable .
	@echo $(KIND) > "$$VENV"/.complete

FORCE:

.uv/bin/uv:
	@$(PICK); "$$python" -m venv .uv
	.uv/bin/python -m pip --disable-pip-version-check install --quiet uv

# Pins that stand already stay, unless ARGS=--upgrade. opencv-python is left out: OpenMMLab asks for it beside
# opencv-python-headless, both install the same folder `cv2`, and only the headless one works without libGL.
lock: $(UV) ## lock what pyproject.toml asks for, for all Pythons and platforms; ARGS=--upgrade takes the newest
	"$(UV)" pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-annotate \
		--no-emit-package opencv-python --custom-compile-command "make lock" --output-file requirements.txt $(MORE) pyproject.toml

doctor: ## what is set up here, what would fail and what to do about it
	@command -v "$$PYTHON" >/dev/null || { $(PICK); echo "Python       ok    $$("$$python" -V), $$(command -v "$$python")"; \
		echo "error: $$PYTHON is not there; run make setup" >&2; exit 1; }
	@"$$PYTHON" -m tools.doctor $(COMMON) $(MORE)

demo: $(SETUP) ## the whole chain on embedded data, CPU, no download; ends with tables and a web page
	@"$$PYTHON" -m tools.demo --data "$$DATA" $(REPLACE) $(MORE)

evaluate: $(SETUP) ## every benchmark that the data allow, for CHECKPOINT NAME or METHOD; ends with a table and the page
	@$(if $(filter-out none,$(LAUNCHER))$(filter-out 1,$(NODES)),$(error evaluate runs on one machine; leave LAUNCHER and NODES out))"$$PYTHON" -m tools.evaluate $(COMMON) $(SUBJECT) $(OWN) $(NAMED) $(REPLACE) --gpus "$$GPUS" $(if $(ONLY),--only "$$ONLY") $(MORE)

data: $(SETUP) ## download and verify DATASET under DATA, or say what to place where; without DATASET, make the demo's data
	@"$$PYTHON" -m common.download $(COMMON) --dataset "$$DATASET" $(MORE)

pretrain: $(SETUP) ## pretrain METHOD and export checkpoints/PROFILE/METHOD.pth
	@$(TRAIN) pretrain.train $(COMMON) $(METHODS) $(OWN) $(RESUMED) $(RANKS) $(MORE)

knn: $(SETUP) ## weighted kNN on frozen features
	@"$$PYTHON" -m pretrain.knn $(COMMON) $(SUBJECT) $(OWN) $(MORE)

linear: $(SETUP) ## linear classifier on frozen features
	@$(TRAIN) pretrain.linear $(COMMON) $(SUBJECT) $(OWN) $(RESUMED) $(RANKS) $(MORE)

# One process uses every GPU it sees; on Slurm, each checkpoint and data set is a task of an array job.
ARRAY = $(if $(filter-out none,$(LAUNCHER)),--launcher "$$LAUNCHER" $(if $(SRUN_ARGS),--sbatch-args="$$SRUN_ARGS"))

export: $(SETUP) ## a checkpoint for others, with a model card; FORMAT=torchvision|timm|safetensors|detectron2|mmlab|huggingface
	@"$$PYTHON" -m common.export $(COMMON) $(SUBJECT) --format "$$FORMAT" $(MORE)

transfer: $(SETUP) ## L-BFGS logistic regression on DATASET
	@"$$PYTHON" -m transfer.run $(COMMON) $(SUBJECT) --dataset "$$DATASET" $(OWN) $(ARRAY) $(MORE)

transfer-all: $(SETUP) ## L-BFGS logistic regression on every data set of the profile; ends with a table
	@"$$PYTHON" -m transfer.run $(COMMON) $(SUBJECT) --dataset all $(OWN) $(ARRAY) $(MORE)

detection-voc: $(SETUP) ## Faster R-CNN on VOC
	@$(TRAIN) detection.train $(COMMON) $(SUBJECT) --dataset voc $(OWN) $(NAMED) $(FREEZE) $(RESUMED) $(RANKS) $(MORE)

detection-coco: $(SETUP) ## Faster R-CNN on COCO
	@$(TRAIN) detection.train $(COMMON) $(SUBJECT) --dataset coco $(OWN) $(NAMED) $(FREEZE) $(RESUMED) $(RANKS) $(MORE)

detect: $(SETUP) ## draw the boxes of a finished detector, METHOD's or NAME's, in the folder IMAGES; JSON beside them
	@"$$PYTHON" -m detection.detect $(COMMON) $(PICTURES) $(MORE)

segment: $(SETUP) ## draw the class maps of a finished segmentation network in the folder IMAGES; JSON beside them
	@"$$PYTHON" -m segmentation.segment $(COMMON) $(PICTURES) $(MORE)

test-detection: $(SETUP) ## test a finished detector again; DATASET=voc or coco
	@$(TRAIN) detection.train $(COMMON) $(SUBJECT) --dataset "$${DATASET:-voc}" $(OWN) $(NAMED) --test-only $(FREEZE) $(REPLACE) $(RANKS) $(MORE)

test-segmentation: $(SETUP) ## test a finished segmentation network again
	@$(TRAIN) segmentation.train $(COMMON) $(SUBJECT) $(OWN) $(NAMED) --test-only $(REPLACE) $(RANKS) $(MORE)

segmentation-ade20k: $(SETUP) ## UPerNet on ADE20K
	@$(TRAIN) segmentation.train $(COMMON) $(SUBJECT) $(OWN) $(NAMED) $(RESUMED) $(RANKS) $(MORE)

import-checkpoint: $(SETUP) ## take the ResNet out of anybody's CHECKPOINT -> checkpoints/PROFILE/NAME.pth
	@"$$PYTHON" -m common.checkpoint import $(COMMON) $(THEIRS) $(REPLACE) $(MORE)

tables: $(SETUP) ## Markdown, LaTeX and CSV tables from the records
	@"$$PYTHON" -m analysis.tables $(COMMON) $(MORE)

tsne: $(SETUP) ## t-SNE of test features, one panel per method; DATASET or DATA_ROOT and CHECKPOINT choose others
	@"$$PYTHON" -m analysis.tsne $(COMMON) $(SHOWN) $(LOOKED) $(MORE)

curves: $(SETUP) ## loss, std and kNN of pretraining against epochs and time, from the logs
	@"$$PYTHON" -m analysis.curves $(COMMON) $(if $(METHOD_GIVEN),$(METHODS)) $(MORE)

geometry: $(SETUP) ## alignment and uniformity of every checkpoint (Wang and Isola, 2020)
	@"$$PYTHON" -m analysis.geometry $(COMMON) $(SHOWN) $(LOOKED) $(MORE)

figures: $(SETUP) ## pictures of segmentation and detection: ground truth, each method's prediction
	@"$$PYTHON" -m analysis.figures $(COMMON) $(MORE)

report: $(SETUP) ## one static page of tables, figures, curves and the record of every number
	@"$$PYTHON" -m analysis.report $(COMMON) $(MORE)

bench: $(SETUP) ## speed and memory as ratios within one run, with targets: one table, and reports/bench.json
	@"$$PYTHON" -m tools.bench $(MORE)

gpu-check: $(SETUP) ## the tests and benchmarks of a GPU -> reports/gpu.json; ONLY=tests|bench|<id>; DEVICE=cpu rehearses
	@"$$PYTHON" -m tools.gpu_check --device "$${DEVICE:-cuda}" --only "$${ONLY:-all}" $(MORE)

chaos: $(SETUP) ## every stage killed, its disk filled, its files damaged; resumed and compared; SEED=0 FAULTS=224
	@"$$PYTHON" -m tools.chaos --seed "$$SEED" $(if $(FAULTS),--faults "$$FAULTS") $(MORE)

study: $(SETUP) ## add runs to the study on CIFAR-10; SCALE=cpu|gpu BUDGET=90m ONLY='1a simsiam'
	@"$$PYTHON" -m tools.study --data "$$DATA" $(if $(SCALE),--scale "$$SCALE") $(if $(BUDGET),--budget "$$BUDGET") $(if $(ONLY),--only "$$ONLY") $(MORE)

study-report: $(SETUP) ## write study/README.md and its figures from study/records
	@"$$PYTHON" -m analysis.study $(MORE)

docs: $(SETUP) ## the documentation's site -> site/index.html
	@NO_MKDOCS_2_WARNING=1 "$$PYTHON" -m mkdocs build --strict --quiet $(MORE)
	@echo "the site: $(CURDIR)/site/index.html"

test: $(SETUP) ## linter, formatter, type checker and the fast tests
	@"$$PYTHON" -m ruff check .
	@"$$PYTHON" -m ruff format --check .
	@"$$PYTHON" -m mypy
	@"$$PYTHON" -m pytest $(MORE)

test-all: $(SETUP) ## all of `make test`, the slow tests, and a rehearsal of gpu-check
	@$(MAKE) --no-print-directory test ARGS="-m 'slow or not slow' $$ARGS"
	@$(MAKE) --no-print-directory gpu-check DEVICE=cpu ONLY= ARGS=

clean: ## remove caches (data, checkpoints, results and reports stay)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path "./$$VENV/*" -prune -exec rm -rf {} +

clean-cache: $(SETUP) ## list and remove the cached features of all runs; ARGS='--runs folder' where they lie elsewhere
	@"$$PYTHON" -m tools.clean_cache $(MORE)

.PHONY: help setup lock doctor demo evaluate data pretrain knn linear export import-checkpoint transfer transfer-all detection-voc \
	detection-coco segmentation-ade20k detect segment test-detection test-segmentation tables tsne curves geometry figures \
	report bench gpu-check chaos study study-report docs test test-all clean clean-cache
