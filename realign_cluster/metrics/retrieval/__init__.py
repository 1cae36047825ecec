"""Finding passages for a query: BM25 by default, exact embeddings given an embedder, or the user's own.

| file | what |
|---|---|
| `retriever` | the interface (`Retriever`), passages, and rankings in one order whatever the machine |
| `bm25` | an index over words, built once into a folder, opened read-only |
| `vectors` | exact inner products with the vectors of an `Embedder` |
| `index_folder` | an index on disk: whole or not there, each file checked when it is opened |
| `plugin` | code of the user's, named as `module:attribute`: a retriever, or an embedder |
| `choice` | which of them, as a job's parameters say it |
"""
