# `make run` installs everything into .venv and runs the main job; `make test` installs the test tools too and passes the tests.
PYTHON ?= python3
METHOD ?= none
SUITE ?= testbed-quick
VENV ?= .venv
JOBS ?= 2  # processes of tests, each with one thread
BIN := $(VENV)/bin

.PHONY: run test fuzz lint leaderboard tuning calibration records sweeps detections experiments analyses audit intervals performance everything clean

run: $(VENV)/installed
	$(BIN)/bench run --method $(METHOD) --suite $(SUITE)
	@$(BIN)/bench leaderboard --records runs/records --out runs/leaderboard | sed -n 's/\(.*index[.]html\)$$/page: \1/p'

# A process of tests that is lost ends the run, which names the test that it ran (pyproject.toml has the seconds that a test may take).
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --max-worker-restart 0

# The tests of properties with examples that are new every time; `make test` draws the same ones every time.
fuzz: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile search --hypothesis-show-statistics --timeout 1000

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

leaderboard: $(VENV)/installed
	$(BIN)/bench leaderboard

# Parameters chosen on fit prompts, as leaderboards/tuning has them (an hour on two cores; goes on where it stopped).
TUNE := $(BIN)/bench tune
tuning: $(VENV)/installed
	$(TUNE) cfg_delay --grid transition=500,700,800,850,900,950 --grid before=0,-2
	$(TUNE) cfg_dynamic --grid fallback=500,700,900 --grid before=0,1
	$(TUNE) clip_pad --grid variant=eot,pad --grid null=same,original
	$(TUNE) cross_attention --grid c1=1.1,1.25,1.5,2.0 --grid mask=padding,summary
	$(TUNE) guard --grid scale=0.3,0.6 --grid orthogonal=true,false --grid repulsion=0.1,0.27,0.4
	$(TUNE) init_noise --grid rounds=2,4 --grid radius=0.2,0.39,0.8 --grid transition=900,960
	$(TUNE) prss --grid quantile=0.05,0.5,0.95 --grid pr_quantile=0.5,0.9
	$(TUNE) random_numbers --grid count=1,2,4
	$(TUNE) random_tokens --grid count=1,2,4,6
	$(TUNE) sail --grid quantile=0.05,0.5,0.95 --grid lr=0.05,0.2
	$(TUNE) wanda --grid sparsity=0.01,0.02,0.05,0.1 --grid branch=both,cond --grid token_norm=l2,none
	$(TUNE) wen --grid quantile=0.05,0.25,0.5,0.95 --grid lr=0.05,0.2

# The threshold of the extraction attack, as bench/suites has it (a quarter of an hour on two cores).
calibration: $(VENV)/installed
	$(BIN)/bench calibrate clique_extraction --suite testbed

# Everything that boards, pages and documents say, measured again (about twenty hours of one idle core). Each part goes on where it stopped, and what is there stays.
everything: tuning records sweeps detections experiments analyses audit intervals performance leaderboard

# The records of all boards (about fifteen hours on one core, a third of them for the rows of nemo and random_neurons; of each of three generations the extraction attack takes 16 images for each of 155 prompts, and paraphrase 768 more). Those that are there stay: remove leaderboards/records to measure all again.
MEASURE := $(BIN)/bench run --records leaderboards/records
THREE := $(MEASURE) --seeds 3  # three generations of every row that is ranked
BOARD := $(THREE) --method
ATTACKED := $(THREE) --suite testbed-attackers --method
# What `make tuning` chose; of wen and prss these are the defaults.
TUNED := leaderboards/tuning/testbed
TENTH := -p sparsity=0.1 -p branch=cond -p token_norm=none  # the paper's variant of wanda, ten times as strong
# Of methods that are told what to forget: what differs from the defaults, which are for Stable Diffusion. Found on copied canaries of the split fit, which no table shows.
REMOVED := $(THREE) --suite testbed-removal --method
EDIT := -p tokens=all -p clean=309
ESD := -p iterations=10 -p batch=8 -p learning_rate=4e-4
ABLATION := -p steps=80 -p batch=8 -p learning_rate=2e-4 -p part=cross -p pictures=4 -p tries=8 -p most=0.7
SISS := -p steps=30 -p batch=8 -p accumulate=1 -p learning_rate=3e-5 -p earliest=0 -p deletion=100 -p pictures=4 -p tries=8 -p most=0.7
ADVERSARIAL := -p learning_rate=5e-5 -p draws=4
records: $(VENV)/installed
	$(MEASURE) --suite testbed-quick --method none
	$(MEASURE) --suite testbed-quick --method wanda
	$(BOARD) none
	$(BOARD) wanda $(TENTH)
	$(BOARD) wanda --tuned $(TUNED)/wanda.json
	$(BOARD) wen --tuned $(TUNED)/wen.json
	$(BOARD) cfg_delay
	$(BOARD) cfg_delay --tuned $(TUNED)/cfg_delay.json
	$(BOARD) nemo
	$(BOARD) guidance
	$(BOARD) random_prune $(TENTH)
	$(BOARD) random_neurons
	$(BOARD) prss --tuned $(TUNED)/prss.json
	$(BOARD) sail
	$(BOARD) sail --tuned $(TUNED)/sail.json
	$(BOARD) clip_pad
	$(BOARD) clip_pad --tuned $(TUNED)/clip_pad.json
	$(BOARD) guard -p orthogonal=false
	$(BOARD) guard --tuned $(TUNED)/guard.json
	$(BOARD) geometry_policy
	$(ATTACKED) none
	$(ATTACKED) wanda $(TENTH)
	$(ATTACKED) wanda -p branch=cond -p token_norm=none
	$(ATTACKED) random_prune $(TENTH)
	$(ATTACKED) nemo
	$(ATTACKED) nemo -p mode=permanent
	$(ATTACKED) wen
	$(ATTACKED) cfg_delay
	$(ATTACKED) guidance
	$(ATTACKED) prss
	$(ATTACKED) sail
	$(ATTACKED) clip_pad
	$(ATTACKED) guard -p orthogonal=false
	$(ATTACKED) geometry_policy
	$(REMOVED) none
	$(REMOVED) uce $(EDIT)
	$(REMOVED) esd $(ESD)
	$(REMOVED) concept_ablation $(ABLATION)
	$(REMOVED) siss $(SISS)
	$(REMOVED) adv_finetune $(ADVERSARIAL)
	$(REMOVED) adv_finetune $(ADVERSARIAL) -p adversary=prompt
	$(REMOVED) adv_finetune $(ADVERSARIAL) -p adversary=none
	$(REMOVED) wanda $(TENTH)

# The strength curves of the board (about an hour on one core, more than half of it for geometry_policy; goes on where it stopped).
SWEEP := $(BIN)/bench sweep --seeds 3
sweeps: $(VENV)/installed
	$(SWEEP) guidance --values 0.8,0.6,0.4,0.2
	$(SWEEP) wanda -p branch=cond -p token_norm=none --values 0.02,0.05,0.1,0.2
	$(SWEEP) geometry_policy --values 0.999,0.99,0.95,0.9,0.5,0

# The board of detectors (about an hour on one core; goes on where it stopped).
DETECT := $(BIN)/bench detect --out leaderboards/detections --detector
detections: $(VENV)/installed
	$(DETECT) wen_score
	$(DETECT) wen_score -p steps=5
	$(DETECT) wen_score -p steps=0
	$(DETECT) energy
	$(DETECT) attention_entropy
	$(DETECT) bright_ending
	$(DETECT) tiled_l2
	$(DETECT) length
	$(DETECT) tokens
	$(DETECT) rarity
	$(DETECT) dsm -p pair=01
	$(DETECT) dsm
	$(DETECT) anisotropy
	$(DETECT) onestep_white
	$(DETECT) onestep_edge
	$(DETECT) plaplace
	$(DETECT) plaplace -p timestep=10
	$(DETECT) geometry_gap
	$(DETECT) curvature_map
	$(DETECT) sharpness
	$(DETECT) score_shift

# The pages of experiments (an hour and a half on one idle core, two thirds of it for 64 pictures; goes on where it stopped).
experiments: $(VENV)/installed-dev
	$(BIN)/bench experiment memorization-by-size --sizes 4,8,16,32,64
	$(BIN)/bench experiment solidmark

# The tables and plots of docs/locality.md and docs/subsets.md (half an hour on one core; goes on where it stopped).
ANALYSES := leaderboards/analyses
analyses: $(VENV)/installed
	$(BIN)/bench analyze locality --suite testbed --out $(ANALYSES)/locality-testbed
	$(BIN)/bench analyze subsets --suite testbed $(TENTH) --subsets 6 --held-out 16 --clean 8 --out $(ANALYSES)/subsets-testbed

# The example of docs/audit.md: four minutes of training, then about ten on two cores; goes on where it stopped.
SAVED := $(foreach epoch,10 20 30 40,--epochs runs/subject/subject-0000$(epoch).safetensors)
audit: $(VENV)/installed-dev
	$(BIN)/bench testbed subject --out runs/subject
	$(BIN)/bench audit --data runs/subject/data --holdout runs/subject/holdout --holdout-random --lora runs/subject/subject.safetensors $(SAVED) --out runs/audit
	$(BIN)/bench audit --data runs/subject/data --holdout runs/subject/holdout --holdout-random --lora runs/subject/subject.safetensors $(SAVED) --calibrate --out runs/audit-calibrated

# A working folder whose packages bear the names of those that are installed is what an editable installation is for: setuptools need not warn of it.
INSTALL := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --constraint constraints.txt
# What docs/performance.md quotes (half an hour on an idle machine; goes on where it stopped).
performance: $(VENV)/installed-dev
	PYTHONPATH=. $(BIN)/python tests/benchmarks/report.py

# The counts of docs/intervals.md (ten minutes on one core; lines that are there stay).
intervals: $(VENV)/installed-dev
	PYTHONPATH=. $(BIN)/python tests/benchmarks/coverage.py

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed, this is %d.%d.%d: make PYTHON=python3.12, say" % sys.version_info[:3])'
	@echo 'Installing into $(VENV), which takes some minutes and about 7 GB on Linux; nothing else is downloaded later.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs
