# What R's flexmix makes of a table, timed: Rscript benchmarks/flexmix.R TABLE.csv TOLERANCE MOST_ITERATIONS
# prints: processor seconds, seconds, iterations, log-likelihood.  Columns x*, y, and start*: the responsibilities to begin from.
suppressMessages(library(flexmix))
given <- commandArgs(TRUE)
rows <- read.csv(given[1])
columns <- grep("^x", names(rows), value = TRUE)
start <- as.matrix(rows[, grep("^start", names(rows))])
experts <- reformulate(columns, "y")
taken <- system.time(fitted <- flexmix(
  experts, data = rows, cluster = start, model = FLXMRglm(experts, family = "gaussian"),
  concomitant = FLXPmultinom(reformulate(columns)),
  control = list(tolerance = as.numeric(given[2]), iter.max = as.integer(given[3]), minprior = 0)
))
cat(sprintf("%.6f %.6f %d %.9f\n", taken[["user.self"]] + taken[["sys.self"]], taken[["elapsed"]], fitted@iter, as.numeric(logLik(fitted))))
