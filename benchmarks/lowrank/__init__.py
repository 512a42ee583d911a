"""Low-rank factorization: is it the best there is, what does it cost, does it pay?"""
