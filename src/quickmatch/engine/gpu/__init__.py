"""The engine's pass on a GPU: Triton kernels, and CUDA graphs of decode steps.

Only forward_pass.py comes here, and only for a device that is one; nothing else imports triton.
"""
