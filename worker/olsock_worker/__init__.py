"""The worker: serves functions over HTTP from olsock sandboxes.

Two processes. `broker` keeps root and makes sandboxes with the library; `front` has no privilege and does everything
else: HTTP (`http`, `routes`), what is deployed (`registry`, `ol_yaml`), who runs where (`functions`, `instances`).
"""
