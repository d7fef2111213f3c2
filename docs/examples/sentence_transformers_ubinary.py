"""Text retrieval with `ubinary` rows: sentence-transformers' packing, searched here, put in order by float queries.

The embeddings are made up, so that no model is needed; with one: `SentenceTransformer(FOLDER).encode(texts)`.
"""

import numpy as np

import nhl_fast as nhl

rng = np.random.default_rng(0)
topics = rng.standard_normal((50, 256)).astype(np.float32)
documents = np.repeat(topics, 20, axis=0) + 0.5 * rng.standard_normal((1000, 256)).astype(np.float32)
queries = topics[:10] + 0.5 * rng.standard_normal((10, 256)).astype(np.float32)

ubinary = np.packbits(documents > 0, axis=1)
try:
    from sentence_transformers.quantization import quantize_embeddings
except ImportError:
    print("sentence-transformers is not here: numpy.packbits gives the same rows")
else:
    assert np.array_equal(quantize_embeddings(documents, precision="ubinary"), ubinary)

_, candidates = nhl.search(np.packbits(queries > 0, axis=1), ubinary, k=40)
scores, ids = nhl.rescore(queries, candidates, codes=ubinary)
topic = np.asarray(ids)[:, :10] // 20
print("documents of the query's topic among the first 10:", (topic == np.arange(10)[:, None]).mean())
assert (topic == np.arange(10)[:, None]).mean() > 0.9
