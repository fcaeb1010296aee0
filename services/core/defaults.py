"""What decides in a live stack where nobody says otherwise. Simulations know a better trigger, which live runs do not bear out yet
(core/merging/README.md, Portfolio)."""

POLICY = "onto"
TRIGGER = "jtom"
