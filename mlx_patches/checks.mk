# What a Linux machine without Metal can prove about a patched source tree of MLX; the Makefile includes this.
# TREE=/path/to/mlx, patched by `python -m mlx_patches apply`. docs/mlx-patches.md says what each proves.
# Debian packages: clang for mlx-types; for the others also cmake g++ libblocksruntime-dev libopenblas-dev
# liblapack-dev liblapacke-dev libfmt-dev nlohmann-json3-dev.

.PHONY: mlx-types mlx-build mlx-run mlx-tree

MLX_WORK := $(CURDIR)/build/mlx-patches
MLX_BUILD = $(MLX_WORK)/cpu-$(MLX_VERSION)
MLX_WHEEL = $(MLX_WORK)/wheel-$(MLX_VERSION)
MLX_VERSION = $(shell sed -nE 's/^#define MLX_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+)$$/\2/p' '$(TREE)/mlx/version.h' 2>/dev/null | paste -sd.)
MLX_JOBS ?= 2

# __builtin_available: Linux has no answer for it, and Debian's clang does not know every Apple platform.
MLX_CLANG = clang++ -std=c++20 -fblocks -w -O1 -include cmath '-D__builtin_available(...)=1' \
  -I$(TREE) -I$(MLX_WHEEL)/mlx/include/metal_cpp -isystem mlx_patches/stubs

mlx-tree: setup
	@test -n '$(TREE)' || { echo 'say which tree: make $(MAKECMDGOALS) TREE=/path/to/mlx' >&2; exit 2; }
	$(BIN)/python -m mlx_patches check '$(TREE)'
	@test -f '$(TREE)/mlx/host_sync.h' || { echo '$(TREE) is not patched' >&2; exit 1; }
	@test -d '$(MLX_WHEEL)' || { \
	  $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	    --platform macosx_14_0_arm64 --python-version 3.12 --dest '$(MLX_WORK)' 'mlx-metal==$(MLX_VERSION)' && \
	  $(BIN)/python -m zipfile -e $(MLX_WORK)/mlx_metal-$(MLX_VERSION)-*.whl '$(MLX_WHEEL)'; }

mlx-types: mlx-tree ## (TREE=) type-check the patched Metal sources of MLX against the macOS headers
	set -e; for file in host_sync transforms backend/metal/event backend/metal/fence; do \
	  $(MLX_CLANG) -fsyntax-only $(TREE)/mlx/$$file.cpp; echo "mlx/$$file.cpp: types hold"; done

mlx-build: mlx-tree ## (TREE=) build MLX's CPU variant from the patched tree
	mkdir -p '$(MLX_WORK)/json/single_include'
	ln -sfn /usr/include/nlohmann '$(MLX_WORK)/json/single_include/nlohmann'
	cmake -S '$(TREE)' -B '$(MLX_BUILD)' -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE='-O1 -DNDEBUG' \
	  -DBUILD_SHARED_LIBS=ON -DMLX_BUILD_METAL=OFF -DMLX_BUILD_GGUF=OFF -DMLX_BUILD_TESTS=OFF \
	  -DMLX_BUILD_EXAMPLES=OFF -DUSE_SYSTEM_FMT=ON -DFETCHCONTENT_SOURCE_DIR_JSON='$(MLX_WORK)/json'
	nice cmake --build '$(MLX_BUILD)' --target mlx --parallel $(MLX_JOBS)

# The Metal sources take the place of what the CPU variant has instead of them.
mlx-run: mlx-build ## (TREE=, x86-64) run the patched evaluation on a fake Metal GPU, with the switch on and off
	mkdir -p '$(MLX_BUILD)/fake'
	set -e; for file in device eval event fence metal resident utils; do \
	  nice $(MLX_CLANG) -c -DMETAL_PATH='""' -DFMT_HEADER_ONLY -DMLX_EXPORT \
	    $(TREE)/mlx/backend/metal/$$file.cpp -o $(MLX_BUILD)/fake/metal_$$file.o; done
	set -e; for file in objc gpu scenarios; do \
	  nice $(MLX_CLANG) -c mlx_patches/fake_metal/$$file.cpp -o $(MLX_BUILD)/fake/$$file.o; done
	clang++ -o '$(MLX_BUILD)/fake/scenarios' $(MLX_BUILD)/fake/*.o \
	  $$(find '$(MLX_BUILD)' -path '*mlx*.dir*' -name '*.o' \
	    | grep -vE 'no_gpu/(event|fence|eval).cpp.o|metal/no_metal.cpp.o') \
	  -lopenblas -llapack -lblas -lBlocksRuntime -ldl -lpthread
	'$(MLX_BUILD)/fake/scenarios'
