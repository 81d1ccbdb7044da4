"""What follows the record of a run: its line in the index, its export, its attacks, its card."""

from __future__ import annotations

from letgo.attacks.engine.spec import missing_attacks
from letgo.core.files import remove_abandoned
from letgo.models.formats import EXPORT, MANIFEST, export_settings
from letgo.runs import record_run
from letgo.runs.results import Result
from letgo.training.opened import Opened
from letgo.training.run_directory import remove_remains


def settle(opened: Opened) -> None:
    """What follows the record of a run; also of one whose process was killed before it came to this."""
    record_run(opened.directory, opened.reporter.say)
    remove_remains(opened.directory)


def export_saved(opened: Opened) -> None:
    """Write what was saved in the format that the config asks for, where that has not been done yet."""
    config, folder = opened.config, opened.directory / EXPORT
    if not config.export or (folder / MANIFEST).is_file():
        return
    from letgo.models.export import export

    asked = export_settings(config.export)
    remove_abandoned(folder, older_than=0)
    export(
        opened.directory,
        asked.format,
        folder,
        rounding=asked.rounding,
        seed=asked.seed,
        original=config.model,
        reporter=opened.reporter,
    )


def attack(opened: Opened, result: Result) -> Result:
    """Run the config's attacks on what was saved; returns the result with theirs."""
    from letgo.attacks.engine.run import attack as attack_directory

    missing = missing_attacks(opened.config.attacks_made, result)
    if not missing:
        return result
    return attack_directory(opened.directory, missing, reporter=opened.reporter, shared_scores=opened.shared_scores)


def publish(opened: Opened, result: Result) -> None:
    """Write the model's card and, where the config asks for it, push the model: at the very end, so that its card
    tells of the attacks."""
    from letgo.report.card import write_model_card

    config, say = opened.config, opened.reporter.say
    write_model_card(opened.directory, result)
    opened.trackers.tell(result)
    if not config.push_to_hub:
        return
    if result.status != "finished":
        say(f"  not pushed to {config.hub_model_id}: the run is {result.status}")
        return
    from letgo.report.publish import push_to_hub

    # What the settings leave open is answered the careful way.
    private = config.hub_private_repo is not False
    address = push_to_hub(opened.directory, str(config.hub_model_id), private=private, reporter=opened.reporter)
    say(f"  pushed to {address}")
