# `make app` and `make test` set up all that they need in .venv; a changed requirements file is installed again.
# Two processes of two threads each would wait for each other on two cores: one thread a process takes two thirds.
# The browser tests run alone, after the others: a page beside two busy processes is slower than any user's.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app test lint format clean

app: .venv/app.done
	$(BIN)/python app.py $(ARGS)

test: .venv/test.done lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/browser $(ARGS)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/browser $(ARGS)

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/test.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/app.done: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/test.done: tests/requirements.txt requirements-ray.txt .venv/app.done
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
