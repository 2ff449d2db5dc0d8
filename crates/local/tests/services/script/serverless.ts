module.exports = { service: 'finch', provider: { name: 'aws' }, functions: {} };
