int ols_probe(const char *feature, struct ols_err *reterr);
