"""Who says "supported": verifiers of a claim against evidence, all behind one interface (`verdict.Verifier`).

| file | what |
|---|---|
| `verdict` | the interface: a `Pair` of evidence and claim in, a `Verdict` out; fingerprints |
| `lexical` | needs no model: `words`, `containment` (what is there), `mismatch` (what speaks against it) |
| `judge` | a model's label probabilities, as rows for a scoring job and verdicts from its output; `evidence` cuts |
| `ensemble`, `fact_service` | several as one; an outside service over HTTP |
| `calibration`, `curves`, `report` | scores into probabilities against human labels; how well it agrees with them |
| `cache` | verdicts that were given before, by content |

To add one: a class with the four methods of `Verifier`. Everything a verdict depends on besides the pair goes into
`facts`, or the cache gives verdicts of something else.
"""
