"""Looking at features: what makes each one fire, and what it does to the prediction.

`collect_feature_data` reads tokens once and gives plain data; `write_dashboard_html` makes one page
of it that opens from disk, `write_dashboard_json` the same data for other programs.
"""

from sae_lens.analysis.dashboards.collect import DashboardSettings, collect_feature_data
from sae_lens.analysis.dashboards.data import (
    FeatureDashboardData,
    FeatureRecord,
    Histogram,
    LogitEffect,
    Neighbor,
    Passage,
)
from sae_lens.analysis.dashboards.page import write_dashboard_html, write_dashboard_json

__all__ = [
    "DashboardSettings",
    "FeatureDashboardData",
    "FeatureRecord",
    "Histogram",
    "LogitEffect",
    "Neighbor",
    "Passage",
    "collect_feature_data",
    "write_dashboard_html",
    "write_dashboard_json",
]
