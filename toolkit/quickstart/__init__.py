"""What the project ships to be tried with: a small encyclopedia, judged queries, graded sentence
pairs, a tiny base model. Nothing but the quickstart and the tests reads it. `smollm2` fetches a
real model, and `demo` makes an encoder of it with the shipped `adapters`."""
