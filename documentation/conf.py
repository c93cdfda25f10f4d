"""Settings of the site: scripts/documentation.sh builds it from the pages beside this file.

The pages stay plain Markdown, as they are read in the repository. What only the site needs, its sidebar and the
reference from the docstrings, is added to them here while they are read.
"""
from pathlib import Path

HERE = Path(__file__).parent
# the sidebar: each page of this folder, in reading order; one that is not there is left out
NAVIGATION = {
    "Using it": ("quickstart", "own_data", "data_format", "cli", "files", "report", "checks", "rtstruct", "api", "limits", "troubleshooting"),
    "How it works": ("cascade", "plan", "paper", "metrics", "reliability"),
    "What was measured": ("experiments", "five_folds"),
}
# shown below api.md in this order
REFERENCE = (
    "c2f_nnunet.workspace.ModelFolder",
    "c2f_nnunet.running.model.open_model",
    "c2f_nnunet.running.model.Model",
    "c2f_nnunet.running.model.build_cascade",
    "c2f_nnunet.network.precision.default_device",
    "c2f_nnunet.network.precision.find_device",
    "c2f_nnunet.geometry.Geometry",
    "c2f_nnunet.io.images.read_image",
    "c2f_nnunet.io.images.read_label",
    "c2f_nnunet.io.images.Image",
    "c2f_nnunet.io.images.write_label",
    "c2f_nnunet.running.predict.predict_array",
    "c2f_nnunet.inference.cascade.OrganReport",
    "c2f_nnunet.inference.agreement.Evidence",
    "c2f_nnunet.evaluation.metrics.score",
    "c2f_nnunet.evaluation.metrics.CaseScore",
    "c2f_nnunet.evaluation.metrics.OrganScore",
    "c2f_nnunet.evaluation.metrics.to_table",
    "c2f_nnunet.labels.LabelSet",
    "c2f_nnunet.planning.plan.read_plan",
    "c2f_nnunet.planning.plan.Plan",
    "c2f_nnunet.planning.plan.CoarsePlan",
    "c2f_nnunet.planning.plan.FinePlan",
    "c2f_nnunet.planning.plan.OrganPrior",
    "c2f_nnunet.planning.plan.MemberPlan",
    "c2f_nnunet.planning.plan.Window",
    "c2f_nnunet.planning.plan.NetworkPlan",
    "c2f_nnunet.planning.plan.TrainingPlan",
    "c2f_nnunet.planning.plan.LossPlan",
)

project = "c2f-nnunet"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
html_theme = "furo"
html_title = project
html_copy_source = False


def navigation() -> str:
    """The sidebar's parts, hidden in the home page."""
    parts = {title: [page for page in pages if (HERE / f"{page}.md").exists()] for title, pages in NAVIGATION.items()}
    return "".join(f"\n```{{toctree}}\n:hidden:\n:caption: {t}\n\n{chr(10).join(pages)}\n```\n" for t, pages in parts.items() if pages)


def reference() -> str:
    """The docstrings of REFERENCE, in reStructuredText."""
    kinds = ("autoclass" if name.rsplit(".", 1)[1][0].isupper() else "autofunction" for name in REFERENCE)
    return "\n## Reference\n\n```{eval-rst}\n" + "\n".join(f".. {kind}:: {name}" for kind, name in zip(kinds, REFERENCE)) + "\n```\n"


def add_what_the_site_needs(app, docname: str, source: list[str]) -> None:
    if docname == "index":
        source[0] += navigation()
    if docname == "api":
        source[0] += reference()


def setup(app) -> None:
    app.connect("source-read", add_what_the_site_needs)
