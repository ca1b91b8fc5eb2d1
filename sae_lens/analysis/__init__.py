"""From SAEs to insight: attaching them to models, judging them, looking at features."""
