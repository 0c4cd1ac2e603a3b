"""Tokens in, tokens out: model, KV blocks, scheduler, sampler, adapters. No HTTP, no SQL."""
