"""Text on the fleet's side: tokenizer, chat template, detokenizer, stop strings. No torch."""
