"""Stage 1: the dataset is what its manifest says, and fit for training."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def validate_dataset(
    dataset: str,
    dataset_digest: str,
    store: str,
    job_id: str,
    validated: dsl.Output[dsl.Dataset],
    findings: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
):
    """Check every episode against the manifest and the contract; any error finding fails the step.

    Args:
        dataset: Reference of the dataset, PATH@sha256:DIGEST or s3://BUCKET/NAME@sha256:DIGEST.
        dataset_digest: The digest alone; with it the cache of Kubeflow Pipelines sees the content.
        store: URI of the store.
        job_id: Run id of the campaign; empty to take it from the pod.
        validated: Pointer to the dataset.
        findings: Everything that was found, for people.
        page: The same with every number and picture, as one HTML file.
    """
    from pathlib import Path

    from roboimi.campaign_step import campaign_step, write_pointer
    from roboimi.errors import DataError

    with campaign_step(store, job_id, "validate", dataset=dataset) as step:
        from roboimi.vla.data.manifest import resolve_dataset
        from roboimi.vla.data.validate.dataset_checks import PAGE_NAME
        from roboimi.vla.data.validate.validate import validate_dataset as run_checks

        ref = resolve_dataset(dataset)
        if dataset_digest and ref.digest != dataset_digest:
            raise DataError(f"Dataset {ref.root} has the digest {ref.digest}, not {dataset_digest}: submit it again.")
        report = run_checks(ref.bring())
        lines = [f"- {finding.sentence}" for finding in report.findings[:500]] or ["No findings."]
        Path(findings.path).write_text("\n".join(["# Dataset validation", "", *lines, ""]))
        written = ref.root / PAGE_NAME  # not there where the dataset's folder cannot be written
        Path(page.path).write_text(written.read_text() if written.is_file() else "<p>See the findings.</p>")
        facts = {"episodes": report.episodes, "frames": report.frames}
        warnings = [finding.sentence for finding in report.warnings]
        step.record |= {"dataset_digest": ref.digest, "warnings": warnings, **facts}
        report.raise_if_failed()
        write_pointer(validated.path, ref.text, ref.digest, **facts)
        step.record["recognised"] = report.recognised
        step.record["result"] = f"{report.episodes} episodes, {report.frames} frames, {len(warnings)} warnings"
