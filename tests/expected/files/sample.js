'use strict';

const http = require('http');
const visits = new Map();

function greet(name) {
  const count = (visits.get(name) || 0) + 1;
  visits.set(name, count);
  return `Hello, ${name}! This is visit number ${count}.`;
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  const name = url.searchParams.get('name') ?? 'stranger';
  response.writeHead(200, { 'content-type': 'text/plain' });
  response.end(greet(name) + '\n');
});

server.listen(3000, () => console.log('listening'));
module.exports = { greet };
