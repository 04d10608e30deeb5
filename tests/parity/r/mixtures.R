# What R makes of rows.csv, from the responsibilities in it: Rscript mixtures.R > results.json
# Debian: apt-get install r-base-core r-cran-flexmix r-cran-mixtools
suppressMessages({library(flexmix); library(mixtools); library(jsonlite)})
rows <- read.csv("rows.csv")
start <- as.matrix(rows[, grep("^start", names(rows))])

# flexmix: gaussian experts behind a multinomial gate.  Its gate is nnet's, whose own tolerance is 1e-8.
formula <- y ~ x1 + x2
fitted <- flexmix(formula, data = rows, cluster = start, model = FLXMRglm(formula, family = "gaussian"),
                  concomitant = FLXPmultinom(~ x1 + x2),
                  control = list(tolerance = 1e-9, iter.max = 500, minprior = 0))
experts <- parameters(fitted)

# mixtools: the same lines without a gate, from the weighted least squares of the same responsibilities.
one <- cbind(1, rows$x1, rows$x2)
lines <- sapply(1:ncol(start), function(e) coef(lm.wfit(one, rows$y, start[, e])))
spread <- sapply(1:ncol(start), function(e) sqrt(weighted.mean((rows$y - one %*% lines[, e])^2, start[, e])))
sink(stderr())
plain <- regmixEM(rows$y, one[, -1], lambda = colMeans(start), beta = lines, sigma = spread,
                  epsilon = 1e-13, maxit = 20000)

# mixtools: two lines in x1 behind a logistic gate in x1, from the first expert's responsibilities and the rest.
two <- cbind(start[, 1], 1 - start[, 1])
one <- cbind(1, rows$x1)
lines <- sapply(1:2, function(e) coef(lm.wfit(one, rows$y, two[, e])))
spread <- sapply(1:2, function(e) sqrt(weighted.mean((rows$y - one %*% lines[, e])^2, two[, e])))
gated <- hmeEM(rows$y, rows$x1, beta = lines, sigma = spread, epsilon = 1e-9, maxit = 2000)
sink()

cat(toJSON(list(
  versions = list(R = R.version.string, flexmix = as.character(packageVersion("flexmix")),
                  mixtools = as.character(packageVersion("mixtools"))),
  flexmix = list(log_likelihood = as.numeric(logLik(fitted)), iterations = fitted@iter,
                 coef = t(experts[1:3, ]), sigma = experts[4, ], gate = t(fitted@concomitant@coef)),
  regmixEM = list(log_likelihood = plain$loglik, share = plain$lambda, coef = t(plain$beta), sigma = plain$sigma),
  hmeEM = list(log_likelihood = gated$loglik, iterations = length(gated$all.loglik) - 1, coef = t(gated$beta),
               sigma = gated$sigma, gate = c(gated$w))
), digits = 12, auto_unbox = TRUE, pretty = TRUE), "\n")
