module.exports = { finch: "tweet" };
