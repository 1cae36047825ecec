"""Finding passages for a query: BM25 by default, exact embeddings given vectors, or the user's own.

| file | what |
|---|---|
| `retriever` | the interface (`Retriever`), passages, and rankings in one order whatever the machine |
| `bm25` | an index over words, built once into a folder, opened read-only |
| `vectors` | exact inner products with vectors that somebody else computed |
| `index_folder` | an index on disk: whole or not there, each file checked when it is opened |
| `plugin` | a retriever of the user's, named as `module:attribute` |
"""
