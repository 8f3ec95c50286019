# Everything a checkout needs: `make demo` and `make test` set up .venv, build and run.
#   make test VENV=$$VIRTUAL_ENV     use an environment that exists
#   make test TORCH=torch==2.10.0    another torch
#   make test PYTHON=python3.12      another interpreter for a new .venv
#   make test JOBS=8                 more test processes, one thread each
#   make cuda ARCHS="80 90"          CUDA architectures, likewise for cuda-check

VENV ?= .venv
TORCH ?= torch==2.13.0
PYTHON ?= python3
JOBS ?= 2

PY := $(VENV)/bin/python
DEPENDENCIES := $(VENV)/.drocc-dependencies
INSTALLED := $(VENV)/.drocc-installed
SOURCES := $(wildcard csrc/*.* csrc/*/*.*) CMakeLists.txt setup.py pyproject.toml drocc_ext/__init__.py
CPP := $(wildcard csrc/*.* csrc/*/*.* csrc/tests/simt/*.h csrc/tests/simt/*.cpp csrc/tests/simt/include/*.h)

OPERATOR_TESTS := $(foreach name,influence l2_shell mahalanobis_shell mlp ops search_recurrent fuzz_operators,\
  $(wildcard python_tests/test_$(name)*.py))

space := $(subst ,, )

.PHONY: demo test test-slow test-all mutations fuzz asan ctest simt simt-all simt-race simt-asan simt-mutations lint format bench cuda cuda-check cuda-sanitize package docs clients clean

demo: $(INSTALLED)
	$(PY) -m drocc_ext.cli demo --out demo-output

# The quick tier: minutes on two cores. Each slow suite has one test here.
test: $(INSTALLED) ctest
	OMP_NUM_THREADS=1 $(PY) -m pytest python_tests -n $(JOBS) --dist worksteal

# What takes minutes, one by one; of Triton's longest suites a share, others in each run.
test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest python_tests -m slow -n $(JOBS) --maxschedchunk 1

# Everything, with the mistakes that the tests have to notice and all of the emulator's cases.
test-all: export DROCC_TEST_ALL = 1
test-all: test test-slow
	$(MAKE) mutations simt-all simt-race simt-asan simt-mutations

# Seeded mistakes, each of which the quick tier has to notice.
mutations: $(INSTALLED)
	$(PY) -m python_tests.mutations --jobs $(JOBS)

# Operators, files and command lines, twenty times as much as in `make test`: about ten minutes.
fuzz: $(INSTALLED)
	DROCC_FUZZ=20 OMP_NUM_THREADS=1 $(PY) -m pytest python_tests/test_fuzz_*.py -n $(JOBS)

# The operators' tests on a CPU library that watches addresses and undefined behaviour. Python itself is not linked to
# libstdc++, without which the sanitizer finds no exceptions.
asan: $(INSTALLED)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/asan -G Ninja -DDROCC_SANITIZE=ON -DDROCC_WERROR=OFF \
	  -DDROCC_CUDA=0 -DPython_EXECUTABLE=$(abspath $(PY)) -DDROCC_OUTPUT_DIR=$(abspath build/asan/site/drocc_ext)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/asan
	cp -r pyproject.toml python_tests build/asan/site/
	tar -c --exclude='*.so' --exclude=__pycache__ drocc_ext | tar -x -C build/asan/site
	cd build/asan/site && cxx=$${CXX:-c++} && ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($$cxx -print-file-name=libasan.so) $$($$cxx -print-file-name=libstdc++.so)" \
	  OMP_NUM_THREADS=2 $(abspath $(PY)) -m pytest -q -p no:cacheprovider $(OPERATOR_TESTS)

# The mathematics from C++, without Python or torch.
ctest: ctest-configured
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/ctest --target secular_test cuda_rows_test hidden_search_test simt_test
	PATH="$(abspath $(VENV))/bin:$$PATH" ctest --test-dir build/ctest --output-on-failure -j $(JOBS)

.PHONY: ctest-configured
ctest-configured: $(INSTALLED)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/ctest -G Ninja -DDROCC_TESTS=ON \
	  -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DPython_EXECUTABLE=$(abspath $(PY)) \
	  -DDROCC_OUTPUT_DIR=$(abspath build/ctest/out) >/dev/null

# The CUDA kernels on an emulator (csrc/tests/simt): a minute or less of what `make test` runs too; all of it; with every
# access watched for races, bounds and alignment; under the address sanitizer (a launch that the emulator refuses
# leaves its fibers behind, so leaks are not counted); and seeded mistakes.
SIMT := PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/ctest --target
simt: ctest-configured
	$(SIMT) simt_test && build/ctest/simt_test
simt-all: ctest-configured
	$(SIMT) simt_test && build/ctest/simt_test --full
simt-race: ctest-configured
	$(SIMT) simt_race_test && build/ctest/simt_race_test --cases 3 && build/ctest/simt_race_test --traffic
simt-asan: ctest-configured
	$(SIMT) simt_asan_test && ASAN_OPTIONS=detect_leaks=0 build/ctest/simt_asan_test --cases 3
simt-mutations: ctest-configured
	$(SIMT) simt_test simt_race_test && $(PY) csrc/tests/simt/mutations/run.py build/ctest --jobs $(JOBS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

bench: $(INSTALLED)
	$(PY) -m benchmarks.bench_l2_shell
	$(PY) -m benchmarks.bench_mahalanobis_shell
	$(PY) -m benchmarks.bench_search_memory

# The CUDA library, on any machine with nvcc; neither a GPU nor a CUDA build of torch is needed.
cuda: $(INSTALLED)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/cuda -G Ninja -DDROCC_CUDA=1 \
	  $(if $(ARCHS),"-DDROCC_CUDA_ARCHS=$(subst $(space),;,$(strip $(ARCHS)))") \
	  -DPython_EXECUTABLE=$(abspath $(PY)) -DDROCC_OUTPUT_DIR=$(abspath build/cuda/out)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/cuda --target drocc_cuda

# Compiles every kernel and reads the compiler's report: no spills, no stack frame, 512 resident threads or more.
cuda-check:
	$(PY) benchmarks/cuda_check.py $(ARCHS)

# Memory errors and races in the CUDA kernels, on a machine with a GPU.
cuda-sanitize:
	for tool in memcheck racecheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 9 $(PY) -m benchmarks.cuda_sanitize || exit 1; done

# The site, into build/site; a link that leads nowhere is an error. In an environment of its own, for mkdocs is no part of
# what is tested.
docs: $(INSTALLED)
	@test -x build/docs-venv/bin/mkdocs || $(PY) -m venv build/docs-venv
	build/docs-venv/bin/python -m pip install --quiet -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. build/docs-venv/bin/mkdocs build --strict --quiet
	@echo "build/site/index.html"

# What needs packages of others: Lightning, skorch, ONNX, and examples with them. They go into the same environment.
clients: $(INSTALLED)
	$(PY) -m pip install --quiet -r examples/requirements.txt
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -m "not slow" python_tests/test_integrations.py \
	  python_tests/test_estimators_pyod.py python_tests/test_estimators_deploy.py python_tests/test_readme.py
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -m slow python_tests/test_examples.py -k "accelerate or lightning or skorch"

# Source archive -> wheel -> the oldest libc it runs with -> an environment that has nothing else -> a few checks.
package: $(INSTALLED)
	rm -rf build/package && mkdir -p build/package/dist
	$(PY) -c "import setuptools.build_meta as b; b.build_sdist('build/package/dist')"
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip wheel --quiet --no-build-isolation --no-deps \
	  --wheel-dir build/package/built build/package/dist/*.tar.gz
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	  --wheel-dir build/package/dist build/package/built/*.whl
	$(PY) -m venv build/package/clean
	build/package/clean/bin/python -m pip install --quiet "$(TORCH)" build/package/dist/*.whl
	cd build/package && clean/bin/python ../../.ci/wheel_check.py dist

# PATH: cmake and ninja come from the environment, not from the system.
$(INSTALLED): $(DEPENDENCIES) $(SOURCES)
	@echo "compiling the operators, which takes minutes"
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

$(DEPENDENCIES): requirements.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing dependencies into $(VENV), which takes minutes"
	$(PY) -m pip install --quiet "$(TORCH)" -r requirements.txt
	@touch $@

clean:
	rm -rf build dist *.egg-info demo-output drocc_ext/*.so
