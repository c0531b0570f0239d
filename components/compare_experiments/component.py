"""Stage 6, the exit task: the report, whatever happened to the steps before."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def compare_experiments(
    experiments: list[dict],
    store: str,
    job_id: str,
    status: dsl.PipelineTaskFinalStatus,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
):
    """Gather what all arms left behind and say which is better; an arm that died is named with its reason.

    Args:
        experiments: The arms that were asked for, each with arm and overrides.
        store: URI of the store.
        job_id: Run id of the campaign.
        status: How the steps before ended.
        report: The report as one HTML file.
        summary: The comparison as a table.
        metrics: Success rate of every arm.
    """
    from pathlib import Path

    from roboimi.campaign_step import campaign_step

    with campaign_step(store, job_id, "compare") as step:
        from roboimi.reports.campaign_data import collect
        from roboimi.reports.markdown import render_markdown
        from roboimi.reports.refresh import result_of
        from roboimi.reports.report import write_report
        from roboimi.reports.summary import metrics as figures

        campaign = collect(step.store, job_id, experiments, status=status.state)
        page = write_report(campaign, step.store)
        Path(report.path).write_text(page.read_text())
        Path(summary.path).write_text(render_markdown(campaign))
        for name, value in figures(campaign).items():
            metrics.log_metric(name, value)
        step.record["result"] = result_of(campaign)
