"""`python -m olsock_worker` is `olsock-worker`."""

from olsock_worker.cli import main

main()
