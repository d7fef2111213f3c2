"""Text retrieval with `ubinary` rows: sentence-transformers' packing, searched here, put in order by float queries.

The model is made here, so that nothing is fetched: a bag of words and a random projection. With a real one,
`SentenceTransformer(FOLDER_OR_NAME)`, the rest stays as it is.
"""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, Dense
from sentence_transformers.util.quantization import quantize_embeddings

import nhl_fast as nhl

torch.manual_seed(0)
random = np.random.default_rng(0)
words = [f"word{i}" for i in range(2000)]
topics = random.permutation(2000).reshape(50, 40)  # 40 words a topic
documents = [" ".join(words[i] for i in random.choice(topics[n // 20], 12)) for n in range(1000)]
queries = [" ".join(words[i] for i in random.choice(topics[n], 12)) for n in range(50)]

bag = BoW(words)
project = Dense(len(words), 512, bias=False, activation_function=torch.nn.Identity())
torch.nn.init.normal_(project.linear.weight)
model = SentenceTransformer(modules=[bag, project], device="cpu")
embeddings, asked = (model.encode(texts, normalize_embeddings=True) for texts in (documents, queries))

# Their rows are ours, byte for byte, whoever packs them.
ubinary = quantize_embeddings(embeddings, precision="ubinary")
assert np.array_equal(ubinary, nhl.pack_codes(embeddings).numpy())
assert np.array_equal(nhl.as_codes(quantize_embeddings(embeddings, precision="binary")).numpy(), ubinary)

index = nhl.NestedIndex(length=512)
index.add(ubinary)
_, candidates = index.search(nhl.pack_codes(asked), k=40)  # Hamming distances of 64 bytes a document
_, by_bits = nhl.rescore(asked, candidates, codes=ubinary, k=10)  # float queries, binary documents
_, by_floats = nhl.rescore(asked, candidates, vectors=embeddings, k=10)  # reads the candidates' vectors alone

exact = torch.from_numpy(asked @ embeddings.T).topk(10).indices


def recall(ids):
    return np.mean([np.isin(exact[n], ids[n]).mean() for n in range(len(ids))])


print("the exact 10 nearest by floats, found among the first 10")
for name, ids in (("codes", candidates[:, :10]), ("float queries", by_bits), ("float vectors", by_floats)):
    print(f"{name}: {recall(ids):.3f}")
