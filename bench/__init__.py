"""The harness. Authors of methods, metrics, attacks and detectors import from here, from
`bench.features` and from `bench.statistics`; so do readers of results. Names load on first use, so
that `bench --help` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.base.lazy import door

_HOMES = {
    # a method, and what its doors get and give
    "Method": "bench.contracts.method",
    "FitData": "bench.contracts.method",
    "CopyJudge": "bench.contracts.method",
    "Need": "bench.contracts.method",
    "State": "bench.contracts.method",
    "Swept": "bench.contracts.method",
    "Where": "bench.contracts.method",
    "MaskedMethod": "bench.contracts.masked",
    "MaskFunction": "bench.contracts.masked",
    # a method that trains
    "Course": "bench.training.loop",
    "Denoising": "bench.training.denoising",
    "fine_tuned": "bench.contracts.fine_tuning",
    "swapped": "bench.contracts.fine_tuning",
    "made_once": "bench.contracts.fine_tuning",
    "write_lora": "bench.diffusion.lora.write",
    "Denoiser": "bench.diffusion.denoiser",
    "trajectory": "bench.diffusion.denoiser",
    "Request": "bench.diffusion.request",
    "Added": "bench.diffusion.request",
    "Step": "bench.diffusion.request",
    "classifier_free_guidance": "bench.diffusion.request",
    # a metric or an attack, what it reads and what it gives
    "Metric": "bench.contracts.metric",
    "Evaluation": "bench.contracts.metric",
    "PerImage": "bench.contracts.metric",
    "OfTables": "bench.contracts.metric",
    "PerSet": "bench.contracts.metric",
    "SampleSet": "bench.contracts.samples",
    "Timing": "bench.contracts.samples",
    "Attack": "bench.contracts.attack",
    "Target": "bench.contracts.target",
    "Threat": "bench.contracts.target",
    "Scores": "bench.contracts.attack",
    # an attack by somebody who knows a picture
    "PictureAttack": "bench.contracts.picture_attack",
    "Judged": "bench.contracts.picture_attack",
    "plain_stage": "bench.contracts.picture_attack",
    "scores_of": "bench.contracts.picture_attack",
    "shown_as": "bench.contracts.picture_attack",
    "Known": "bench.contracts.held",
    "Held": "bench.contracts.held",
    "Finding": "bench.contracts.held",
    "Holding": "bench.contracts.held",
    "Guide": "bench.contracts.held",
    "Stage": "bench.contracts.held",
    "Arrays": "bench.contracts.held",
    "Exhibit": "bench.contracts.target",
    "EXHIBITS": "bench.contracts.target",
    "Shown": "bench.records.record",
    # a detector, and what it sees
    "Detector": "bench.contracts.detector",
    "Needs": "bench.contracts.detector",
    "Recorder": "bench.contracts.detector",
    "Moment": "bench.contracts.detector",
    "Observation": "bench.contracts.detector",
    # the protocol, a run of it, and what is left of runs
    "Suite": "bench.suite.suite",
    "Prompt": "bench.suite.prompts",
    "Role": "bench.suite.schema",
    "load_suite": "bench.suite.load",
    "design_of": "bench.suite.design",
    "Experiment": "bench.running.experiment",
    "Engine": "bench.running.engine",
    "Images": "bench.running.images",
    "prepare": "bench.running.prepare",
    "run": "bench.running.run",
    "RunRecord": "bench.records.record",
    "load_record": "bench.records.record",
    "load_board": "bench.leaderboard.frames",
    # somebody's own model
    "audit": "bench.auditing.api",
    # errors that a user reads, progress, files
    "UserError": "bench.base.errors",
    "UnknownName": "bench.base.errors",
    "Unmeasurable": "bench.base.errors",
    "one_line": "bench.base.errors",
    "validation_line": "bench.base.parameters",
    "Report": "bench.base.progress",
    "digest_of": "bench.base.digests",
    "read_table": "bench.base.foreign",
    "path_digest": "bench.base.digests",
    "read_picture": "bench.base.pictures",
    "read_image": "bench.base.pictures",
    "decode_image": "bench.base.pictures",
    "centred_square": "bench.base.pictures",
    "has_picture_suffix": "bench.base.pictures",
    "evenly": "bench.base.spread",
    "spread": "bench.base.spread",
    # how much a suite may ask for
    "IMAGES_PER_PROMPT": "bench.base.limits",
    "ROUNDS": "bench.base.limits",
    # files that may run code
    "trust": "bench.features.weights",
}
__all__ = list(_HOMES)
__getattr__ = door(__name__, _HOMES)

if TYPE_CHECKING:  # the same names for type checkers and editors
    from bench.auditing.api import audit as audit
    from bench.base.digests import digest_of as digest_of
    from bench.base.digests import path_digest as path_digest
    from bench.base.errors import UnknownName as UnknownName
    from bench.base.errors import Unmeasurable as Unmeasurable
    from bench.base.errors import UserError as UserError
    from bench.base.errors import one_line as one_line
    from bench.base.foreign import read_table as read_table
    from bench.base.limits import IMAGES_PER_PROMPT as IMAGES_PER_PROMPT
    from bench.base.limits import ROUNDS as ROUNDS
    from bench.base.parameters import validation_line as validation_line
    from bench.base.pictures import centred_square as centred_square
    from bench.base.pictures import decode_image as decode_image
    from bench.base.pictures import has_picture_suffix as has_picture_suffix
    from bench.base.pictures import read_image as read_image
    from bench.base.pictures import read_picture as read_picture
    from bench.base.progress import Report as Report
    from bench.base.spread import evenly as evenly
    from bench.base.spread import spread as spread
    from bench.contracts.attack import Attack as Attack
    from bench.contracts.attack import Scores as Scores
    from bench.contracts.detector import Detector as Detector
    from bench.contracts.detector import Moment as Moment
    from bench.contracts.detector import Needs as Needs
    from bench.contracts.detector import Observation as Observation
    from bench.contracts.detector import Recorder as Recorder
    from bench.contracts.fine_tuning import fine_tuned as fine_tuned
    from bench.contracts.fine_tuning import made_once as made_once
    from bench.contracts.fine_tuning import swapped as swapped
    from bench.contracts.held import Arrays as Arrays
    from bench.contracts.held import Finding as Finding
    from bench.contracts.held import Guide as Guide
    from bench.contracts.held import Held as Held
    from bench.contracts.held import Holding as Holding
    from bench.contracts.held import Known as Known
    from bench.contracts.held import Stage as Stage
    from bench.contracts.masked import MaskedMethod as MaskedMethod
    from bench.contracts.masked import MaskFunction as MaskFunction
    from bench.contracts.method import CopyJudge as CopyJudge
    from bench.contracts.method import FitData as FitData
    from bench.contracts.method import Method as Method
    from bench.contracts.method import Need as Need
    from bench.contracts.method import State as State
    from bench.contracts.method import Swept as Swept
    from bench.contracts.method import Where as Where
    from bench.contracts.metric import Evaluation as Evaluation
    from bench.contracts.metric import Metric as Metric
    from bench.contracts.metric import OfTables as OfTables
    from bench.contracts.metric import PerImage as PerImage
    from bench.contracts.metric import PerSet as PerSet
    from bench.contracts.picture_attack import Judged as Judged
    from bench.contracts.picture_attack import PictureAttack as PictureAttack
    from bench.contracts.picture_attack import plain_stage as plain_stage
    from bench.contracts.picture_attack import scores_of as scores_of
    from bench.contracts.picture_attack import shown_as as shown_as
    from bench.contracts.samples import SampleSet as SampleSet
    from bench.contracts.samples import Timing as Timing
    from bench.contracts.target import EXHIBITS as EXHIBITS
    from bench.contracts.target import Exhibit as Exhibit
    from bench.contracts.target import Target as Target
    from bench.contracts.target import Threat as Threat
    from bench.diffusion.denoiser import Denoiser as Denoiser
    from bench.diffusion.denoiser import trajectory as trajectory
    from bench.diffusion.lora.write import write_lora as write_lora
    from bench.diffusion.request import Added as Added
    from bench.diffusion.request import Request as Request
    from bench.diffusion.request import Step as Step
    from bench.diffusion.request import classifier_free_guidance as classifier_free_guidance
    from bench.features.weights import trust as trust
    from bench.leaderboard.frames import load_board as load_board
    from bench.records.record import RunRecord as RunRecord
    from bench.records.record import Shown as Shown
    from bench.records.record import load_record as load_record
    from bench.running.engine import Engine as Engine
    from bench.running.experiment import Experiment as Experiment
    from bench.running.images import Images as Images
    from bench.running.prepare import prepare as prepare
    from bench.running.run import run as run
    from bench.suite.design import design_of as design_of
    from bench.suite.load import load_suite as load_suite
    from bench.suite.prompts import Prompt as Prompt
    from bench.suite.schema import Role as Role
    from bench.suite.suite import Suite as Suite
    from bench.training.denoising import Denoising as Denoising
    from bench.training.loop import Course as Course
