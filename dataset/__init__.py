"""The dataset: from a TOML of sources to batches of cached features.

``load_dataset_config`` -> ``open_dataset`` -> (``work_list``, ``load_media``, ``CacheStore.write``) when caching, or
``plan_training`` -> ``BatchSampler`` -> ``load_batch`` when training.
"""
