"""What people see of the answers: figures (``plots``) and self-contained HTML pages (``html``)."""
