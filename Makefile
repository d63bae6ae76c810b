# The commands of this project; `make help` lists them. Each sees to the system packages first (scripts/packages.sh).

export PATH := $(PATH):$(HOME)/.cargo/bin

THREADS ?= 2
VENV ?= .venv
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 1800
# mpi: `make test` tests training by several processes too.
FEATURES ?=
WITH = $(if $(FEATURES),--features $(FEATURES))

# The demo: a square around the Mona Lisa's head, as large against her face as the driver's picture against his, and of the
# result the part where the head turns.
CROP = 150,60,670,580
GIF_FROM = 0.6
GIF_SECONDS = 3.5

.PHONY: help demo test test-camera test-ranks check-elsewhere soak run bench gpu-check gpu-pack fuzz screenshots packages

help:
	@echo 'make demo    make the Mona Lisa follow a drawn performer: output/result.mp4, output/demo.gif'
	@echo 'make test    run every test'
	@echo 'make test-camera   try the camera code in a virtual machine (Debian; fetches a kernel, 85 MB, once)'
	@echo 'make test-ranks    train by two processes of mpirun (installs OpenMPI; builds mimic again with the feature mpi)'
	@echo 'make check-elsewhere   see that mimic compiles for macOS and Windows (Linux; fetches zig, 90 MB, once)'
	@echo 'make run     open the window'
	@echo 'make soak    run the demo in the window for SOAK_SECONDS=$(SOAK_SECONDS) and see that memory stays flat'
	@echo 'make bench   time mimic, PyTorch and ONNX Runtime on this machine (THREADS=$(THREADS), Python in VENV=$(VENV))'
	@echo 'make gpu-check   test and time mimic on this machine'"'"'s graphics card (output/gpu-check; PROFILE, FEATURES, DEVICE: see scripts/gpu-check.sh)'
	@echo 'make gpu-pack    the same as a folder to carry to a machine with a card'
	@echo 'make screenshots   make the pictures in screenshots/ anew'
	@echo 'make fuzz    feed broken files to every parser, FUZZ_SECONDS=$(FUZZ_SECONDS) each'

packages:
	@scripts/packages.sh

demo: packages
	cargo run --locked --release -- animate --source-image assets/mona-lisa.jpg --driving-video assets/driver.mp4 \
		--crop $(CROP) -o output/result.mp4
	@ffmpeg -v error -y -ss $(GIF_FROM) -t $(GIF_SECONDS) -i output/result.mp4 -vf \
		'crop=iw:iw:0:0,fps=12.5,scale=320:-1:flags=lanczos,split[a][b];[a]palettegen=max_colors=128[p];[b][p]paletteuse=dither=bayer:bayer_scale=4' \
		output/demo.gif
	@echo 'The Mona Lisa follows assets/driver.mp4 in $(CURDIR)/output/result.mp4'
	@echo 'and, short and small, in $(CURDIR)/output/demo.gif'

test: packages
	@if cargo nextest --version >/dev/null 2>&1; then \
		set -x; cargo nextest run --locked $(WITH) && cargo test --locked $(WITH) --doc; \
	else \
		set -x; cargo test --locked $(WITH); \
	fi

test-camera:
	@scripts/packages.sh camera
	scripts/test-camera.sh $(PROBE)

test-ranks:
	@scripts/packages.sh mpi
	cargo test --locked --features mpi --test ranks

check-elsewhere: packages
	VENV=$(VENV) scripts/check-elsewhere.sh

soak: packages
	cargo run --locked --release -- bench --window --seconds $(SOAK_SECONDS)

run: packages
	cargo run --locked --release

# Where Python has no venv, or not the versions asked for, mimic is timed alone.
bench: packages
	cargo build --locked --release
	@mkdir -p output
	@if { [ -x $(VENV)/bin/pip ] || python3 -m venv $(VENV); } && \
		$(VENV)/bin/python -m pip install -q -r benches/peers/requirements.txt; then \
		set -ex; \
		$(VENV)/bin/python benches/peers/check.py weights/mimic-small.safetensors tests/fixtures; \
		cargo run --locked -q --release -- bench --faces --threads $(THREADS) --json >output/bench-mimic.json; \
		$(VENV)/bin/python benches/peers/peers.py --faces --threads $(THREADS) --add output/bench-mimic.json --json output/bench.json; \
	else \
		echo 'PyTorch and ONNX Runtime could not be installed (Python 3.11 with venv, and PyPI): mimic is timed alone.'; \
		set -x; cargo run --locked -q --release -- bench --faces --threads $(THREADS); \
	fi

gpu-pack: packages
	scripts/gpu-check.sh pack output/gpu-check

gpu-check: gpu-pack
	output/gpu-check/gpu-check.sh

fuzz:
	@scripts/packages.sh fuzz
	@rustup toolchain list | grep -q nightly || rustup toolchain install nightly --profile minimal
	@cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
	@for target in $$(cargo +nightly fuzz list); do \
		cargo +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

screenshots: demo
	scripts/screenshots.sh
