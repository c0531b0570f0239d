"""What a campaign's figures mean, in sentences: is the pipeline sound, and which arm is better, if any.

The wording never claims more than the test: an arm is "better" only where a Holm-corrected test separates it at the 5 %
level, else "not separable", with what these data could have shown at all. Settings that were trained several times are
compared by their trainings; with one training each, the verdict is about these checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roboimi.reports.arm_data import BLIND, CONTROL, ArmReport
from roboimi.reports.campaign_data import CampaignReport
from roboimi.reports.settings import Setting, SettingComparison
from roboimi.reports.statistics import PairedComparison, Proportion, detectable_difference, episodes_needed

GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"
SOUND_FROM = 0.5
"""The control arm shows a sound pipeline when even the lower end of its interval is at least this."""


@dataclass(frozen=True)
class Finding:
    """An answer: `level` (`good`, `doubtful`, `bad`), a `headline`, and the sentences behind it."""

    level: str
    headline: str
    sentences: tuple[str, ...] = ()


def first_line(report: CampaignReport) -> str:
    """Which data and which encoder, in one sentence each."""
    data, encoder = report.data, report.encoder
    count = f"{data.episodes} demonstrations from " if data.episodes is not None else ""
    where = data.reference or "a dataset that no step recorded"
    digest = f" (sha256 {data.digest[:12]})" if data.digest else ""
    seen = encoder.description or "not recorded by any step"
    return f"Data: {count}{where}{digest}. Encoder: {seen}."


def standin_note(report: CampaignReport) -> str:
    """What a stand-in encoder means for everything below it; empty for a real one."""
    if not report.encoder.is_standin:
        return ""
    return (
        "The encoder is a stand-in, a tiny vision tower that is not SigLIP2. Every step of the pipeline is real, but "
        "the success of the arms that see says nothing about SigLIP2."
    )


def soundness(report: CampaignReport) -> Finding:
    """Whether demonstrations, training, checkpoints and rollouts fit together, judged by the reference arms."""
    level, headline, control = _control(report.references(CONTROL))
    return Finding(level, headline, (*control, *_blind(report)))


def verdict(report: CampaignReport) -> Finding:
    """Which candidate is better, or that the evidence does not separate them."""
    finished = sorted((arm for arm in report.candidates if arm.success), key=lambda arm: -arm.success.rate)
    absent = [f"{arm.name} has no result: {arm.missing.rstrip('.')}." for arm in report.candidates if arm.missing]
    if not report.candidates:
        return Finding(DOUBTFUL, "There was nothing to compare: the campaign had reference arms only.")
    if not finished:
        return Finding(BAD, "There is nothing to compare: no candidate has a result.", tuple(absent))
    if len(finished) == 1:
        only = finished[0]
        sentence = f"{only.name} succeeded in {_count(only.success)} ({_interval(only.success)})."
        return Finding(DOUBTFUL, f"There is nothing to compare {only.name} with.", (sentence, *absent))
    unknown = [f"{arm.unknown} episodes of {arm.name} ended unknown: {NO_RATE}." for arm in finished if arm.unknown]
    known = [*absent, *unknown]
    if report.setting_pairs:
        return _on_sound_ground(report, _verdict_on_settings(report, finished, known))
    if len(report.settings) == 1:
        return _one_setting(report.settings[0], known)
    once = ONE_TRAINING.format(count={2: "two"}.get(len(finished), len(finished)))
    caveats = [*known, *_what_episodes_show(report, finished), once, LAST_CHECKPOINT]
    if all(arm.success.successes == 0 for arm in finished):
        headline = "No candidate succeeded in any episode, so there is nothing to rank."
        return Finding(BAD, headline, (_highest_stages(finished), *caveats))
    headline, sentences = _ranking(finished, report.candidate_pairs)
    level = GOOD if any(pair.separated for pair in report.candidate_pairs) else DOUBTFUL
    return _on_sound_ground(report, Finding(level, headline, (*sentences, *caveats)))


def setting_sentence(pair: SettingComparison) -> str:
    """Two settings in words."""
    trainings = f"{pair.trainings[0]} and {pair.trainings[1]} trainings on {pair.shared} shared seeds"
    gap = f"{_points(pair.difference)} points (95\u00a0% interval {_points(pair.low)} to {_points(pair.high)})"
    tested = f"p = {p_text(pair.p_holm)} with Holm's correction, {trainings}"
    if pair.better is None:
        return f"{pair.first} and {pair.second} are not separable: {gap}, {tested}."
    better, worse = (pair.first, pair.second) if pair.better == pair.first else (pair.second, pair.first)
    return f"{better} is better than {worse}: {gap}, {tested}."


def pair_sentence(pair: PairedComparison) -> str:
    """One pair in words."""
    counts = f"{pair.both + pair.only_first} against {pair.both + pair.only_second} of {pair.shared} shared seeds"
    tested = f"p = {p_text(pair.p_holm)}, exact McNemar with Holm's correction"
    if pair.better is None:
        return f"{pair.first} and {pair.second} are not separable: {counts}, {tested}."
    first, second = (pair.first, pair.second) if pair.better == pair.first else (pair.second, pair.first)
    return f"{first} is better than {second}: {counts} ({pair.first} first), {tested}."


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f}\u00a0%"  # a line must not break before the sign


def p_text(value: float) -> str:
    """A p-value as people read it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


ONE_TRAINING = (
    "Every setting was trained once: this speaks of these {count} checkpoints and not of the settings. Whether one "
    "setting is better than another takes several trainings of each."
)
LAST_CHECKPOINT = "Each arm's last checkpoint was rolled out; none was chosen by its success."
NO_RATE = "they are in no rate and in no test"


def _on_sound_ground(report: CampaignReport, finding: Finding) -> Finding:
    """The finding itself, or with a warning where the control arm fails."""
    if soundness(report).level != BAD:
        return finding
    warning = "The control arm fails: settle that before you read anything into this."
    return Finding(BAD, finding.headline, (warning, *finding.sentences))


def _verdict_on_settings(report: CampaignReport, finished: Sequence[ArmReport], known: Sequence[str]) -> Finding:
    pairs = report.setting_pairs
    compared = sorted((item for item in report.settings if len(item.rates) > 1), key=lambda item: -item.rate)
    sentences = [setting_sentence(pair) for pair in pairs]
    reach = max(pair.detectable for pair in pairs)
    sentences.append(
        f"With these trainings and seeds, a difference of {100 * reach:.0f} points is found in 4 of 5 cases; more "
        "trainings narrow it where they differ among each other, more rollout seeds where start positions do."
    )
    once = [item.name for item in report.settings if len(item.rates) == 1]
    if once:
        sentences.append(f"{_listed(once)} {_be(once)} left out: with one training nothing can be said of a setting.")
    if all(arm.success.successes == 0 for arm in finished):
        headline = "No candidate succeeded in any episode, so there is nothing to rank."
        return Finding(BAD, headline, (_highest_stages(finished), *known))
    headline = _headline([item.name for item in compared], pairs)
    level = GOOD if any(pair.better for pair in pairs) else DOUBTFUL
    return Finding(level, headline, (*sentences, *known, LAST_CHECKPOINT))


def _one_setting(setting: Setting, known: Sequence[str]) -> Finding:
    rates = ", ".join(percent(rate) for rate in setting.rates)
    sentence = f"Its {len(setting.rates)} trainings succeeded in {rates}: they differ by their seed alone."
    return Finding(DOUBTFUL, f"There is nothing to compare {setting.name} with.", (sentence, *known))


def _control(arms: Sequence[ArmReport]) -> tuple[str, str, list[str]]:
    if not arms:
        return (
            DOUBTFUL,
            "Not established: this campaign had no control arm.",
            ["Add the arm privileged_state, which is told the state of the scene instead of seeing it."],
        )
    arm = arms[0]
    if arm.success is None:
        return DOUBTFUL, "Not established: the control arm has no result.", [f"{arm.name}: {arm.missing}."]
    what = f"The control arm {arm.name}, which is told the state of the scene instead of seeing it, succeeded in"
    fact = f"{what} {_count(arm.success)} ({_interval(arm.success)})."
    if arm.success.low >= SOUND_FROM:
        return GOOD, "Yes.", [fact, "So demonstrations, training, checkpoints and rollouts fit together."]
    if arm.success.rate >= SOUND_FROM:
        more = "More episodes or a longer training would tell."
        return DOUBTFUL, "Probably, but the evidence is thin.", [fact, more]
    if arm.success.successes == 0:
        stages = _highest_stages([arm])
        hint = (
            "Before comparing encoders, find out why: too short a training, demonstrations without noise, or a defect."
        )
        return BAD, "No: even the control arm fails.", [fact, stages, hint]
    hint = "A candidate that does no better may be limited by its training, not by its encoder."
    return BAD, "Not yet: the control arm mostly fails.", [fact, hint]


def _blind(report: CampaignReport) -> list[str]:
    arms = report.references(BLIND)
    if not arms:
        return ["There was no blind arm, so nothing says what this task gives without looking."]
    blind = arms[0]
    if blind.success is None:
        return [f"The blind arm has no result, so nothing says what this task gives without looking ({blind.missing})."]
    name = "" if blind.name == BLIND else f" {blind.name}"
    sentences = [
        f"The blind arm{name}, which sees nothing, succeeded in {_count(blind.success)} "
        f"({_interval(blind.success)}): that is what this task gives without looking."
    ]
    pairs = [pair for pair in report.reference_pairs if pair.second == blind.name]
    looking = [pair.first for pair in pairs if pair.better == pair.first]
    lost = [pair.first for pair in pairs if pair.better != pair.first]
    if looking:
        sentences.append(f"{_listed(looking)} {_be(looking)} better than blind: looking helped.")
    if lost:
        sentences.append(f"{_listed(lost)} {_be(lost)} not shown to be better than blind.")
    return sentences


def _ranking(finished: Sequence[ArmReport], pairs: Sequence[PairedComparison]) -> tuple[str, list[str]]:
    """Headline and one sentence a pair."""
    return _headline([arm.name for arm in finished], pairs), [pair_sentence(pair) for pair in pairs]


def _headline(names: Sequence[str], pairs: Sequence[PairedComparison] | Sequence[SettingComparison]) -> str:
    """Who leads, best first in `names`: the leaders are those that no other one is shown to beat."""
    beaten = {pair.second if pair.better == pair.first else pair.first for pair in pairs if pair.better}
    leaders = [name for name in names if name not in beaten]
    best = leaders[0]
    if len(leaders) == 1 and all(pair.better == best for pair in pairs if best in (pair.first, pair.second)):
        return f"{best} is better than {_listed([name for name in names if name != best])}."
    rest = f" Shown to be worse: {_listed(sorted(beaten))}." if beaten else ""
    if len(leaders) == 1:
        return f"{best} leads, but not everything is separable from it.{rest}"
    return f"The evidence does not separate {_listed(leaders)}.{rest}"


def _what_episodes_show(report: CampaignReport, finished: Sequence[ArmReport]) -> list[str]:
    shared = min((pair.shared for pair in report.candidate_pairs), default=0)
    if shared == 0:
        return ["The candidates share no seed with a known outcome, so they cannot be compared."]
    pooled = sum(arm.success.successes for arm in finished) / sum(arm.success.episodes for arm in finished)
    smallest = detectable_difference(pooled, shared)
    limit = (
        f"No difference at all can be separated with {shared} shared seeds"
        if smallest is None
        else f"With {shared} shared seeds, a difference of {100 * smallest:.0f} points is found in 4 of 5 cases"
    )
    return [f"{limit}; to tell 10 points apart takes about {round(episodes_needed(pooled), -1)} episodes an arm."]


def _points(share: float) -> str:
    return f"{100 * share:+.0f}"


def _highest_stages(arms: Sequence[ArmReport]) -> str:
    reached = [f"{arm.name} {max(arm.stages, default=0)} at best, {arm.mean_stage or 0:.1f} on average" for arm in arms]
    return f"Highest stage of the task: {'; '.join(reached)}."


def _count(success: Proportion) -> str:
    return f"{success.successes} of {success.episodes}"


def _interval(success: Proportion) -> str:
    return f"95\u00a0% interval {percent(success.low)} to {percent(success.high)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
