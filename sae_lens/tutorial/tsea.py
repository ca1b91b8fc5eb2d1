"""The later home of `sae_lens.analysis.tsea`; the same objects."""

from sae_lens.analysis.tsea import (
    calculate_batch_enrichment_scores,
    generate_pos_sets,
    get_baby_name_sets,
    get_enrichment_df,
    get_gene_set_from_regex,
    get_letter_gene_sets,
    get_test_gene_sets,
    manhattan_plot_enrichment_scores,
    pad_gene_sets,
    plot_top_k_feature_projections_by_token_and_category,
)

__all__ = [
    "calculate_batch_enrichment_scores",
    "generate_pos_sets",
    "get_baby_name_sets",
    "get_enrichment_df",
    "get_gene_set_from_regex",
    "get_letter_gene_sets",
    "get_test_gene_sets",
    "manhattan_plot_enrichment_scores",
    "pad_gene_sets",
    "plot_top_k_feature_projections_by_token_and_category",
]
