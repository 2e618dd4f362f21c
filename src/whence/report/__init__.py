"""Answers for people: figures (``plots``), notebooks, and self-contained HTML pages (``html``)."""
