"""`omnikit export`: a trained run as an ordinary Hugging Face folder, which transformers loads without omnikit."""
